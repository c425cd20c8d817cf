"""``lorafusion serve``: keeps a base loaded, and trains the jobs of the store."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lorafusion.cli.store_options import Store
from lorafusion.launch.environment import prepare_environment

_STOPPED = 128  # plus the signal's number, as shells count


class Dtype(StrEnum):
    """Number formats of the base."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT64 = "float64"


def command(  # noqa: PLR0913 - one argument an option
    base: Annotated[str, typer.Option(help="The base model: a folder or a hub id.")],
    dtype: Annotated[Dtype, typer.Option(help="Number format of the base.")] = Dtype.FLOAT32,
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
    store: Store = "",
) -> None:
    """Keep a base loaded, and train the jobs that are submitted for it, as they come.

    Takes jobs whose base, dtype and deterministic are these. SIGINT or SIGTERM saves what is done
    and gives the jobs back; whatever else happens, another worker goes on from their checkpoints.
    Exit code: 0, or 130 and 143 after a signal, 2 bad input.
    """
    prepare_environment()
    from lorafusion.cli.display import make_console
    from lorafusion.cli.lines import Lines
    from lorafusion.cli.quiet import quiet_transformers
    from lorafusion.cli.store_options import store_url
    from lorafusion.launch.serve import ServeOptions, serve, served_run
    from lorafusion.launch.store_worker import WorkerOptions

    quiet_transformers()
    run = served_run(
        base,
        dtype=dtype.value,
        deterministic=deterministic,
        capacity=capacity or "auto",
        threads=threads,
    )
    how = WorkerOptions(residents, save_every, until_idle, lease_s=lease, workspace=workspace)
    options = ServeOptions(store_url(store), run, how)
    serve(options, Lines(make_console(stderr=False)))
    if options.stop.signal is not None:
        raise typer.Exit(_STOPPED + options.stop.signal)
