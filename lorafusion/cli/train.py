"""``lorafusion train FILE``: train all jobs of a file at once, and show how they fare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorafusion.cli.quiet import quiet_transformers
from lorafusion.jobs.loading import read_run_file
from lorafusion.launch.environment import prepare_environment

if TYPE_CHECKING:
    from lorafusion.launch.local import Existing, StopRequest
    from lorafusion.training.result import RunResult

SOME_FAILED = 1
_STOPPED = 128  # plus the signal's number, as shells count


def command(
    file: Annotated[Path, typer.Argument(help="The job file (YAML).")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder of the run: else output_dir of the file, else runs/FILE."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from each job's newest checkpoint.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier run's results.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object at the end, the rest on stderr.")
    ] = False,
    show_generation: Annotated[
        bool, typer.Option(help="Answer a held-out prompt of each job before and after.")
    ] = False,
) -> None:
    """Train all jobs of a job file at once over one frozen base.

    Exit code: 0 all jobs succeeded, 1 some failed, 2 bad input, 130 or 143 stopped by SIGINT or
    SIGTERM with all state saved.
    """
    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other: give one of them.")
    run = read_run_file(file)
    for note in run.notes:
        typer.echo(f"note: {note}", err=as_json)
    spec = run.valid()
    folder = output or Path(spec.output_dir or Path("runs", file.stem))
    prepare_environment()
    # Importing torch and transformers takes seconds: not before the file is known to be good.
    from lorafusion.cli.closing import show_result
    from lorafusion.cli.display import make_console, watch
    from lorafusion.launch.local import StopRequest, run_local

    quiet_transformers()
    console = make_console(stderr=as_json)
    stop = StopRequest()
    existing: Existing = "resume" if resume else "overwrite" if overwrite else "refuse"
    with watch([job.name for job in spec.jobs], console) as board:
        result = run_local(
            spec,
            output=folder,
            events=board,
            stop=stop,
            existing=existing,
            generations=show_generation,
        )
    show_result(console, result, board.rows)
    if any(job.state == "paused" for job in result.jobs):
        console.print(f"to go on: {_resume_command(file, output)}", soft_wrap=True)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), allow_nan=False))
    raise typer.Exit(_exit_code(result, stop))


def _exit_code(result: RunResult, stop: StopRequest) -> int:
    states = {job.state for job in result.jobs}
    if stop.signal is not None and "paused" in states:
        return _STOPPED + stop.signal
    return SOME_FAILED if "failed" in states else 0


def _resume_command(file: Path, output: Path | None) -> str:
    folder = "" if output is None else f" --output {output}"
    return f"lorafusion train {file}{folder} --resume"
