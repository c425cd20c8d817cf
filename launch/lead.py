"""The training part of a rank: rank 0 leads, the others follow."""

from __future__ import annotations

import os
from typing import Any

from lorafusion.launch.local import announced, pinned_arithmetic
from lorafusion.launch.stopping import stop_on_signals
from lorafusion.launch.worker import Rank
from lorafusion.training.arrivals import Arrivals
from lorafusion.training.events import Events
from lorafusion.training.result import RunResult
from lorafusion.training.team import Team


def lead_run(rank: Rank, team: Team, events: Events, arrivals: Arrivals | None = None) -> RunResult:
    """Rank 0's part: :func:`lorafusion.training.run.train` to its end.

    ``arrivals``: where jobs come from while the run goes on.

    SIGINT and SIGTERM end the run after the running microbatches, with all state saved.
    """
    from lorafusion.training.run import train

    stop = announced(rank.stop, events)
    options = _run_options(rank, should_stop=stop, arrivals=arrivals)
    for note in rank.notes:
        events.note(note)
    if rank.world.restarts:
        events.note(f"start {rank.world.restarts + 1}: going on from the newest checkpoints")
    with (
        pinned_arithmetic(options.threads, deterministic=rank.spec.deterministic),
        stop_on_signals(rank.stop),
    ):
        steps = train(rank.spec, options, events, team)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value


def follow_run(rank: Rank, team: Team) -> None:
    """The other ranks' part."""
    from lorafusion.training.follow import follow

    options = _run_options(rank, should_stop=lambda: None)
    with pinned_arithmetic(options.threads, deterministic=rank.spec.deterministic):
        follow(rank.spec, options, team)


def rank_threads(rank: Rank) -> int:
    """CPU threads of this rank.

    Where bits are to be the same they must not depend on the number of stages: a GEMM's rounding
    depends on how it is cut over threads. Else the ranks share the cores of their machine.
    """
    cores = len(os.sched_getaffinity(0))
    share = cores if rank.spec.deterministic else max(1, cores // rank.world.local_ranks)
    return rank.spec.threads or share


def _run_options(rank: Rank, **others: Any) -> Any:
    from lorafusion.training.options import RunOptions

    return RunOptions(
        rank.output,
        resume=rank.existing == "resume",
        overwrite=rank.existing == "overwrite",
        threads=rank_threads(rank),
        should_stop_job=rank.stop.job_reason,
        trace=rank.options.trace,
        replica_mode=rank.options.replica_mode,
        **others,
    )
