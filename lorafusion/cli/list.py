"""``lorafusion list``: all jobs of the store, for people and for scripts."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from lorafusion.cli.store_options import Store, store_url


def command(
    state: Annotated[
        list[str] | None, typer.Option("--state", help="Jobs in this state alone; may be repeated.")
    ] = None,
    ids: Annotated[bool, typer.Option("--ids", "-q", help="Ids alone, one a line.")] = False,
    store: Store = "",
) -> None:
    """List the jobs of the store, the oldest first. Exit code: 0, or 2 bad input."""
    from lorafusion.cli.store_views import jobs_table
    from lorafusion.jobs.store.database import Database
    from lorafusion.jobs.store.reading import list_jobs, list_workers
    from lorafusion.jobs.store.states import State

    known = [each.value for each in State]
    for name in state or ():
        if name not in known:
            raise typer.BadParameter(f"--state is {name!r}; allowed: {', '.join(known)}.")
    database = Database(store_url(store))
    jobs = list_jobs(database, [State(name) for name in state or ()])
    if ids:
        for job in jobs:
            typer.echo(job.id)
    elif jobs:
        Console(highlight=False).print(jobs_table(jobs, list_workers(database)))
    else:
        typer.echo(f"no such jobs in {database.place}" if state else f"no jobs in {database.place}")
