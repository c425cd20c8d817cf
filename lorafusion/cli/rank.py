"""``python -m lorafusion.launch FILE --stages S``: what one rank shows; torchrun starts it."""

from __future__ import annotations

import os
import sys
import traceback
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from lorafusion.cli import show_error
from lorafusion.cli.options import AsJson, File, HangTimeout, Mode, Output, Overwrite, Resume, Trace
from lorafusion.cli.store_options import VARIABLE
from lorafusion.cli.train import existing_results, resume_command, show_run, write_end_report
from lorafusion.errors import LorafusionError
from lorafusion.jobs.loading import read_run_file
from lorafusion.launch.codes import SIGNALLED, StoppedEarly
from lorafusion.launch.elastic import Elastic
from lorafusion.launch.worker import HANG_TIMEOUT_S, START_TIMEOUT_S, RankOptions, run_rank
from lorafusion.training.grid import Grid
from lorafusion.training.options import trace_mode

if TYPE_CHECKING:
    from lorafusion.launch.worker import Rank
    from lorafusion.training.events import Events
    from lorafusion.training.result import RunResult
    from lorafusion.training.team import Team


def main() -> None:
    """Entry point of every rank."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command("python -m lorafusion.launch", help=None)(command)
    app(prog_name="python -m lorafusion.launch")


def command(  # noqa: PLR0913 - one argument an option
    file: File,
    stages: Annotated[int, typer.Option(min=1, help="Pipeline stages: one rank each.")],
    replicas: Annotated[
        int, typer.Option(min=1, help="Pipelines side by side: so many ranks a stage.")
    ] = 1,
    replica_mode: Mode = "auto",
    output: Output = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    hang_timeout: HangTimeout = HANG_TIMEOUT_S,
    trace: Trace = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="FILE is a server's: jobs come from the store.")
    ] = False,
    elastic: Annotated[
        Elastic,
        typer.Option(
            help="Where there are other than S x D ranks, as after torchrun --nnodes MIN:MAX has "
            "lost a machine: refuse; recut: go on with other stages and replicas; wait: until "
            "they are there. With the last two an earlier run is gone on with."
        ),
    ] = "refuse",
    start_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds within which every rank must have come.")
    ] = START_TIMEOUT_S,
) -> None:
    """One rank of a run whose base is cut into pipeline stages. torchrun starts one for each.

    Exit code: as `lorafusion train`, on rank 0; on the others 0, or 2 or 1 if an error ended all.
    """
    if overwrite and elastic != "refuse":
        raise typer.BadParameter(
            "--overwrite would remove at each start what --elastic goes on with: leave one out."
        )
    if serve:
        from lorafusion.launch.served_file import read_served

        read, lead, trace = read_served, _lead_server, False
    else:
        read, lead = read_run_file, partial(_lead_run, as_json=as_json)
    options = RankOptions(
        file,
        Grid(stages, replicas),
        output,
        existing=existing_results(resume=resume, overwrite=overwrite),
        hang_timeout_s=hang_timeout,
        start_timeout_s=start_timeout,
        trace=trace_mode(trace),
        replica_mode=replica_mode,
        elastic=elastic,
        read=read,
    )
    _leave(run_rank(options, lead, _follow, show=_show))


def _lead_run(rank: Rank, team: Team, *, as_json: bool) -> int:
    options = rank.options
    for note in rank.run.notes if rank.run else ():
        typer.echo(f"note: {note}", err=as_json)
    return show_run(
        rank.spec,
        lambda events: _lead(rank, team, events),
        rank.stop,
        as_json=as_json,
        resume=resume_command(options.file, options.output, options.grid),
    )


def _lead_server(rank: Rank, team: Team) -> int:
    from lorafusion.cli.display import make_console
    from lorafusion.cli.lines import Lines
    from lorafusion.cli.quiet import quiet_transformers
    from lorafusion.launch.serve import serve_stages

    quiet_transformers()
    serve_stages(rank, team, os.environ[VARIABLE], Lines(make_console(stderr=False)))
    signal = rank.stop.signal
    return 0 if signal is None else SIGNALLED + signal


def _follow(rank: Rank, team: Team) -> None:
    from lorafusion.cli.quiet import quiet_transformers
    from lorafusion.launch.lead import follow_run

    quiet_transformers()
    follow_run(rank, team)


def _lead(rank: Rank, team: Team, events: Events) -> RunResult:
    """Train, and draw what the ranks did."""
    from lorafusion.launch.lead import lead_run
    from lorafusion.launch.run_store import RunStore, StoredRun
    from lorafusion.plans.pipeline_report import write_pipeline_report
    from lorafusion.training.trace_file import FOLDER

    run = StoredRun(rank.spec, rank.options.file, rank.output)
    with RunStore(run, rank.stop, events) as told:
        result = lead_run(rank, team, told)
    if rank.options.trace != "off":
        events.status("drawing the pipeline")
        for note in write_pipeline_report(rank.output / FOLDER, team.stages):
            events.note(note)
    write_end_report(rank.output, events)
    return result


def _show(error: BaseException) -> None:
    if isinstance(error, LorafusionError):
        show_error(error)
    elif isinstance(error, StoppedEarly):
        typer.echo(str(error), err=True)
    else:
        traceback.print_exception(error)


def _leave(code: int) -> None:
    """End at once: a thread that still waits for another rank would crash Python as it ends."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
