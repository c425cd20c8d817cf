"""``lorafusion serve``: keeps a base loaded, and trains the jobs of the store."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorafusion.cli.options import HangTimeout
from lorafusion.cli.store_options import VARIABLE, Store, store_url
from lorafusion.launch.codes import SIGNALLED
from lorafusion.launch.environment import prepare_environment
from lorafusion.training.grid import Grid

if TYPE_CHECKING:
    from lorafusion.jobs.schema import RunSpec
    from lorafusion.launch.store_worker import WorkerOptions


@dataclass(frozen=True)
class _Stages:
    count: int
    max_restarts: int
    hang_timeout_s: float


class Dtype(StrEnum):
    """Number formats of the base."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT64 = "float64"


def command(  # noqa: PLR0913 - one argument an option
    base: Annotated[str, typer.Option(help="The base model: a folder or a hub id.")],
    dtype: Annotated[Dtype, typer.Option(help="Number format of the base.")] = Dtype.FLOAT32,
    stages: Annotated[
        int,
        typer.Option(
            min=1, help="Cut the base into pipeline stages, a process of this machine each."
        ),
    ] = 1,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Equal bytes with any neighbours; slower.")
    ] = False,
    capacity: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of a microbatch; chosen by default.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all by default.")] = None,
    residents: Annotated[int, typer.Option(min=1, help="Most jobs at a time.")] = 50,
    save_every: Annotated[
        int, typer.Option(min=1, help="Steps between checkpoints of jobs that do not say.")
    ] = 25,
    until_idle: Annotated[
        bool, typer.Option("--until-idle", help="End when no job is left.")
    ] = False,
    workspace: Annotated[
        Path | None, typer.Option(help="Folder that jobs may not read or write outside of.")
    ] = None,
    lease: Annotated[
        float, typer.Option(min=1, help="Seconds of silence after which others take its jobs.")
    ] = 30.0,
    max_restarts: Annotated[
        int,
        typer.Option(min=0, help="With stages: how often to go on when a process is lost."),
    ] = 10,
    hang_timeout: HangTimeout = 300.0,
    store: Store = "",
) -> None:
    """Keep a base loaded, and train the jobs that are submitted for it, as they come.

    Takes jobs whose base, dtype and deterministic are these. SIGINT or SIGTERM saves what is done
    and gives the jobs back; whatever else happens, another worker goes on from their checkpoints.
    Exit code: 0, or 130 and 143 after a signal, 1 a process was lost too often, 2 bad input.
    """
    prepare_environment()
    from lorafusion.launch.served_file import served_run
    from lorafusion.launch.store_worker import WorkerOptions

    run = served_run(
        base,
        dtype=dtype.value,
        deterministic=deterministic,
        capacity=capacity or "auto",
        threads=threads,
    )
    how = WorkerOptions(residents, save_every, until_idle, lease_s=lease, workspace=workspace)
    url = store_url(store)
    if stages > 1:
        code = _on_ranks(run, how, url, _Stages(stages, max_restarts, hang_timeout))
    else:
        code = _here(run, how, url)
    raise typer.Exit(code)


def _here(run: RunSpec, how: WorkerOptions, url: str) -> int:
    from lorafusion.cli.display import make_console
    from lorafusion.cli.lines import Lines
    from lorafusion.cli.quiet import quiet_transformers
    from lorafusion.launch.serve import ServeOptions, serve

    quiet_transformers()
    options = ServeOptions(url, run, how)
    serve(options, Lines(make_console(stderr=False)))
    signal = options.stop.signal
    return 0 if signal is None else SIGNALLED + signal


def _on_ranks(run: RunSpec, how: WorkerOptions, url: str, stages: _Stages) -> int:
    from lorafusion.launch.launcher import launch_here
    from lorafusion.launch.serve import worker_folder
    from lorafusion.launch.served_file import write_served
    from lorafusion.launch.store_worker import new_worker

    folder = worker_folder(new_worker(run).id)
    folder.mkdir(parents=True)
    file = folder / "served.json"
    write_served(file, run, how)
    os.environ[VARIABLE] = url
    arguments = ["-m", "lorafusion.launch", str(file), "--serve", "--output", str(folder)]
    arguments += ["--stages", str(stages.count), "--hang-timeout", str(stages.hang_timeout_s)]
    return launch_here(arguments, grid=Grid(stages.count), max_restarts=stages.max_restarts)
