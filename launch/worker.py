"""What one rank does, from its start to its exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from lorafusion.errors import LorafusionError
from lorafusion.jobs.loading import RunFile, read_run_file
from lorafusion.jobs.schema import RunSpec
from lorafusion.launch.codes import (
    BAD_INPUT,
    FAULT,
    EndedByRankZero,
    StoppedEarly,
    exit_code,
)
from lorafusion.launch.elastic import Elastic, describe, recut, wait_for_ranks
from lorafusion.launch.environment import prepare_environment
from lorafusion.launch.log import RankLog
from lorafusion.launch.parallel import check_parallel
from lorafusion.launch.report import announce, conclude
from lorafusion.launch.stopping import SIGNALS, Existing, StopRequest
from lorafusion.launch.world import World
from lorafusion.planner.plan import ReplicaMode
from lorafusion.training.grid import Grid
from lorafusion.training.options import TraceMode

if TYPE_CHECKING:
    from lorafusion.launch.startup import Facts
    from lorafusion.training.team import Recorder, Team

START_TIMEOUT_S = 120.0
HANG_TIMEOUT_S = 300.0
# The main thread ends by itself once a rank is lost, unless it is stuck.
GRACE_S = 10.0
# A rank that ends because another is lost leaves after it: torchrun names whom it sees first, and
# looks every 0.1 s.
LAST_S = 0.5


@dataclass(frozen=True)
class RankOptions:
    """How the ranks of a run do it, the same on all.

    Attributes:
        file: The job file.
        grid: Stages and replicas.
        output: Folder of the run; None: what the file says, else runs/FILE.
        existing: What to do with an earlier run's results in ``output``.
        hang_timeout_s: Without progress on any rank, until the run is ended.
        start_timeout_s: Within which every rank must have come.
        trace: What is kept of what each rank does when, in ``output``/trace.
        replica_mode: Whether replicas share every job.
        elastic: What to do where there are not as many ranks.
        read: Reads ``file``.
    """

    file: Path
    grid: Grid
    output: Path | None = None
    existing: Existing = "refuse"
    hang_timeout_s: float = HANG_TIMEOUT_S
    start_timeout_s: float = START_TIMEOUT_S
    trace: TraceMode = "spans"
    replica_mode: ReplicaMode = "auto"
    elastic: Elastic = "refuse"
    read: Callable[[Path], RunFile] = read_run_file


class _EarlySignals:
    """On rank 0 a signal ends what comes before and after the run itself.

    Once it ends, none counts: torchrun sends SIGTERM to all ranks when it has lost one.
    """

    over = False

    def take(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        if not self.over:
            self.over = True
            raise StoppedEarly(number)


@dataclass(frozen=True)
class Rank:
    """This process while it takes part in a run.

    Attributes:
        world: Which rank it is.
        options: How the run is done.
        run: The job file; None if it cannot be read.
        problem: What is wrong with it.
        output: Folder of the run.
        existing: What to do with earlier results there; a restart goes on from them.
        log: This rank's.
        early: Signals outside of the run itself.
        stop: Asked to stop by a signal, on rank 0.
        notes: For the user, of how it started.
    """

    world: World
    options: RankOptions
    run: RunFile | None
    problem: LorafusionError | None
    output: Path
    existing: Existing
    log: RankLog
    early: _EarlySignals
    stop: StopRequest = field(default_factory=StopRequest)
    notes: tuple[str, ...] = ()

    @property
    def spec(self) -> RunSpec:
        """What the job file says; ranks with a bad one do not get far enough to ask."""
        assert self.run is not None and self.run.spec is not None
        return self.run.spec


def output_folder(file: Path, spec: RunSpec | None, output: Path | None) -> Path:
    """Where a run's results go."""
    return output or Path((spec and spec.output_dir) or Path("runs", file.stem))


def run_rank(
    options: RankOptions,
    lead: Callable[[Rank, Team], int],
    follow: Callable[[Rank, Team], None],
    *,
    show: Callable[[BaseException], None],
) -> int:
    """Meet the other ranks, compare, connect, and do this rank's part.

    Args:
        options: How.
        lead: Rank 0's part; returns what to exit with.
        follow: The others' part.
        show: Tells the user of an error; rank 0's.

    Returns:
        What to exit with. Whatever went wrong is in the logs and shown by then.
    """
    try:
        world = World.read()
    except LorafusionError as error:
        show(error)
        return BAD_INPUT
    signals = _EarlySignals()
    for number in SIGNALS:  # the others end when rank 0 tells them, or when it is gone
        signal.signal(number, signal.SIG_IGN if world.rank else signals.take)
    announce(world.rank)
    rank = _prepare(world, options, signals)
    try:
        code = _take_part(rank, lead, follow)
    except BaseException as error:
        return _failed(rank, error, show)
    rank.log.say(f"done, exit code {code}")
    return conclude(world.rank, code)


def _prepare(world: World, options: RankOptions, signals: _EarlySignals) -> Rank:
    run, problem = None, None
    try:
        run = options.read(options.file)
        check_parallel(run.valid(), options.grid)
    except LorafusionError as error:
        problem = error
    output = output_folder(options.file, run and run.spec, options.output)
    # torchrun does not count a start because of machines that came or left.
    again = world.restarts or options.elastic != "refuse"
    existing = "resume" if again else options.existing
    log = RankLog(output, world.rank)
    log.say(
        f"rank {world.rank} of {world.ranks} on {world.host}, process {os.getpid()}, "
        f"start {world.restarts + 1}"
    )
    return Rank(world, options, run, problem, output, existing, log, signals)


def _take_part(
    rank: Rank, lead: Callable[[Rank, Team], int], follow: Callable[[Rank, Team], None]
) -> int:
    prepare_environment()
    # Importing torch takes seconds: not before the log is open.
    from lorafusion.launch.agreement import agree
    from lorafusion.launch.startup import (
        compare,
        gather_facts,
        meet_at_store,
    )
    from lorafusion.launch.team import TeamOptions, join_team

    rank = _settled(rank)
    options, world = rank.options, rank.world
    store = meet_at_store(world, options.start_timeout_s)
    facts = gather_facts(
        world, options.file, grid=options.grid, mode=options.replica_mode, error=rank.problem
    )

    def check(all_facts: Sequence[Facts]) -> None:
        if rank.problem is not None:
            raise rank.problem
        compare(world, all_facts)
        _check_base(rank)

    store = agree(store, world, facts, check, options.start_timeout_s)
    team_options = TeamOptions(
        world,
        store=store,
        start_timeout_s=options.start_timeout_s,
        hang_timeout_s=options.hang_timeout_s,
        recorder=lambda offset_s: _trace(rank, offset_s),
        on_problem=lambda error: _end_soon(rank, error),
        on_hang=rank.log.stacks,
        gathers=rank.spec.parallel.zero == 3,
    )
    with join_team(team_options) as team:
        rank.log.say(f"connected to all ranks, computing on {team.device}")
        if team.first:
            return lead(rank, team)
        follow(rank, team)
    return 0


def _settled(rank: Rank) -> Rank:
    """With the stages and replicas that the ranks form."""
    from lorafusion.launch.startup import check_grid

    options, world, notes = rank.options, rank.world, rank.notes
    grid = options.grid
    if world.ranks != grid.ranks and options.elastic == "wait":
        wait_for_ranks(world, grid, partial(_say, rank))
    if world.ranks != grid.ranks and options.elastic == "recut" and rank.problem is None:
        grid = recut(grid, world.ranks, _layers(rank))
        asked = f"{describe(options.grid)} ({options.grid.ranks} ranks)"
        notes = (f"{asked} were asked for, and there are {world.ranks}: {describe(grid)}",)
        rank.log.say(notes[0])
    check_grid(world, grid)
    options = replace(options, grid=grid)
    return replace(rank, options=options, notes=notes, world=replace(world, replicas=grid.replicas))


def _say(rank: Rank, text: str) -> None:
    """To the log, and on rank 0 to the user."""
    rank.log.say(text)
    if rank.world.rank == 0:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def _trace(rank: Rank, offset_s: float) -> Recorder:
    from lorafusion.training.options import Traces
    from lorafusion.training.recorders import make_recorder

    traces = Traces.of(rank.output, rank.options.trace)
    return make_recorder(traces, rank.world.rank, rank.options.grid, offset_s=offset_s)


def _check_base(rank: Rank) -> None:
    """From the config alone, as rank 0 can before anything is loaded."""
    from lorafusion.planner.stages import cut_layers

    cut_layers([1.0] * _layers(rank), rank.options.grid.stages)


def _layers(rank: Rank) -> int:
    from lorafusion.models.load import check_base

    return check_base(rank.spec.base_model).get_text_config().num_hidden_layers


def _failed(rank: Rank, error: BaseException, show: Callable[[BaseException], None]) -> int:
    rank.early.over = True
    code = exit_code(error)
    if isinstance(error, EndedByRankZero):
        rank.log.say(f"ended by rank 0, exit code {code}: {error}")
        if error.__cause__ is not None:  # what was met here first
            rank.log.error(error.__cause__)
    else:
        rank.log.error(error)
    if rank.world.rank == 0:
        show(error)
    if code != FAULT:
        return conclude(rank.world.rank, code)
    time.sleep(LAST_S)
    return code


def _end_soon(rank: Rank, error: LorafusionError) -> None:
    """End this process if the main thread has not by then."""
    rank.early.over = True

    def end() -> None:
        rank.log.say(f"the main thread did not end within {GRACE_S:g} s: {error}")
        rank.log.stacks()
        if rank.world.rank == 0:
            sys.stderr.write(f"error: {error}\n")
            sys.stderr.flush()
        os._exit(exit_code(error))

    timer = threading.Timer(GRACE_S, end)
    timer.daemon = True
    timer.start()
