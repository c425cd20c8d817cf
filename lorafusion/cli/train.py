"""``lorafusion train FILE``: train all jobs of a file at once, and show how they fare."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorafusion.cli.options import AsJson, File, HangTimeout, Mode, Output, Overwrite, Resume, Trace
from lorafusion.cli.quiet import quiet_transformers
from lorafusion.jobs.loading import read_run_file
from lorafusion.jobs.schema import RunSpec
from lorafusion.launch.codes import SIGNALLED
from lorafusion.launch.environment import prepare_environment
from lorafusion.launch.parallel import check_parallel
from lorafusion.launch.worker import HANG_TIMEOUT_S, RankOptions, output_folder
from lorafusion.training.grid import Grid
from lorafusion.training.options import trace_mode

if TYPE_CHECKING:
    from lorafusion.launch.stopping import Existing, StopRequest
    from lorafusion.training.events import Events
    from lorafusion.training.result import RunResult

SOME_FAILED = 1


def command(  # noqa: PLR0913 - one argument an option
    file: File,
    output: Output = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    show_generation: Annotated[
        bool, typer.Option(help="Answer a held-out prompt of each job before and after.")
    ] = False,
    stages: Annotated[
        int,
        typer.Option(
            min=1, help="Cut the base into pipeline stages, a process of this machine each."
        ),
    ] = 1,
    replicas: Annotated[
        int, typer.Option(min=1, help="Pipelines side by side, each with all of the base.")
    ] = 1,
    replica_mode: Mode = "auto",
    max_restarts: Annotated[
        int,
        typer.Option(
            min=0, help="With several processes: how often to go on when one is lost or hangs."
        ),
    ] = 0,
    trace: Trace = None,
    hang_timeout: HangTimeout = HANG_TIMEOUT_S,
) -> None:
    """Train all jobs of a job file at once over one frozen base.

    While it runs, and afterwards, `lorafusion status --store OUTPUT` shows how the jobs stand, and
    `logs`, `cancel` and `pause` work on them too.

    Exit code: 0 all jobs succeeded, 1 some did not or a process was lost, 2 bad input, 130 or 143
    stopped by SIGINT or SIGTERM with all state saved.
    """
    existing = existing_results(resume=resume, overwrite=overwrite)
    run = read_run_file(file)
    spec = run.valid()
    grid = Grid(stages, replicas)
    check_parallel(spec, grid)
    if grid.ranks > 1 or spec.parallel.zero:
        if show_generation:
            raise typer.BadParameter(
                "--show-generation needs the whole base in one process, and --stages, --replicas "
                "and `zero: 3` do not leave it in one. Leave them or it out; `lorafusion generate` "
                "answers with the finished adapters."
            )
        from lorafusion.launch.launcher import launch_here

        options = RankOptions(
            file,
            grid,
            output,
            existing,
            hang_timeout_s=hang_timeout,
            trace=trace_mode(trace),
            replica_mode=replica_mode,
        )
        arguments = _rank_arguments(options, as_json=as_json)
        raise typer.Exit(launch_here(arguments, grid=grid, max_restarts=max_restarts))
    for note in run.notes:
        typer.echo(f"note: {note}", err=as_json)
    prepare_environment()
    # Importing torch and transformers takes seconds: not before the file is known to be good.
    from lorafusion.launch.local import LocalOptions, finish_local
    from lorafusion.launch.run_store import RunStore, StoredRun
    from lorafusion.launch.stopping import StopRequest

    stop = StopRequest()

    def train(events: Events) -> RunResult:
        options = LocalOptions(
            output_folder(file, spec, output),
            existing,
            stop,
            generations=show_generation,
            trace=trace_mode(trace),
        )
        with RunStore(StoredRun(spec, file, options.output), stop, events) as told:
            result = finish_local(spec, options, told)
        write_end_report(options.output, events)
        return result

    code = show_run(spec, train, stop, as_json=as_json, resume=resume_command(file, output))
    raise typer.Exit(code)


def existing_results(*, resume: bool, overwrite: bool) -> Existing:
    """What the two options ask for.

    Raises:
        BadParameter: Both are given.
    """
    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other: give one of them.")
    return "resume" if resume else "overwrite" if overwrite else "refuse"


def show_run(
    spec: RunSpec,
    train: Callable[[Events], RunResult],
    stop: StopRequest,
    *,
    as_json: bool,
    resume: str,
) -> int:
    """Train, and show how the jobs fare and what came of them.

    Args:
        spec: The run.
        train: Trains it; to be given who watches.
        stop: Says whether a signal has ended the run.
        as_json: Print one JSON object at the end, the rest on stderr.
        resume: The command that goes on with paused jobs.

    Returns:
        What to exit with.
    """
    from lorafusion.cli.closing import show_result
    from lorafusion.cli.display import make_console, watch

    quiet_transformers()
    console = make_console(stderr=as_json)
    with watch([job.name for job in spec.jobs], console) as board:
        result = train(board)
    show_result(console, result, board.rows)
    if any(job.state == "paused" for job in result.jobs):
        console.print(f"to go on: {resume}", soft_wrap=True)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), allow_nan=False))
    return _exit_code(result, stop)


def write_end_report(output: Path, events: Events) -> None:
    """Write the report of a run that has ended; what goes wrong is a note."""
    from lorafusion.reports.write import report_at_end

    events.status("writing the report")
    for note in report_at_end(output):
        events.note(note)


def resume_command(file: Path, output: Path | None, grid: Grid | None = None) -> str:
    """The command that goes on with a run."""
    words = ["lorafusion", "train", str(file)]
    words += [] if output is None else ["--output", str(output)]
    if grid is not None and grid.stages > 1:
        words += ["--stages", str(grid.stages)]
    if grid is not None and grid.replicas > 1:
        words += ["--replicas", str(grid.replicas)]
    return " ".join([*words, "--resume"])


def _rank_arguments(options: RankOptions, *, as_json: bool) -> list[str]:
    """Of Python, for one rank: see :mod:`lorafusion.cli.rank`."""
    grid = options.grid
    arguments = ["-m", "lorafusion.launch", str(options.file), "--stages", str(grid.stages)]
    if grid.replicas > 1:
        arguments += ["--replicas", str(grid.replicas), "--replica-mode", options.replica_mode]
    arguments += ["--hang-timeout", str(options.hang_timeout_s)]
    if options.output is not None:
        arguments += ["--output", str(options.output)]
    if options.existing != "refuse":
        arguments.append(f"--{options.existing}")
    if options.trace != "spans":
        arguments.append("--trace" if options.trace == "profile" else "--no-trace")
    return [*arguments, "--json"] if as_json else arguments


def _exit_code(result: RunResult, stop: StopRequest) -> int:
    states = {job.state for job in result.jobs}
    if stop.signal is not None and "paused" in states:
        return SIGNALLED + stop.signal
    return 0 if states <= {"succeeded"} else SOME_FAILED
