"""``lorafusion status``: how the store's jobs stand."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lorafusion.cli.store_options import Store, store_url
from lorafusion.cli.store_views import JobsView, jobs_table, plain

if TYPE_CHECKING:
    from lorafusion.jobs.store.records import JobRecord

_NEWEST = 20
_LOOK_S = 1.0


def command(
    names: Annotated[
        list[str] | None, typer.Argument(help="Ids or names; by default the newest jobs.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All jobs, not the newest 20.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Until all have ended.")] = False,
    output: Annotated[
        str, typer.Option("--output", "-o", help="table, or json.", metavar="table|json")
    ] = "table",
    store: Store = "",
) -> None:
    """Show how jobs stand. Exit code: 0, or 2 where there is no such job."""
    if output not in ("table", "json"):
        raise typer.BadParameter(f"--output is {output!r}; allowed: table, json.")
    from lorafusion.jobs.store.database import Database
    from lorafusion.jobs.store.reading import find, list_jobs, list_workers

    database = Database(store_url(store))
    ids = [find(database, name).id for name in names or ()]

    def jobs() -> list[JobRecord]:
        if ids:
            return [find(database, one) for one in ids]
        return list_jobs(database, newest=None if every else _NEWEST)

    if output == "json":
        typer.echo(json.dumps([plain(job) for job in jobs()], allow_nan=False))
        return
    if not watch:
        found = jobs()
        if not found:
            typer.echo(f"no jobs in {database.place}")
            return
        Console(highlight=False).print(jobs_table(found, list_workers(database)))
        return
    with JobsView() as view:
        while True:
            found = jobs()
            view.show(found, list_workers(database))
            if all(job.ended for job in found):
                return
            time.sleep(_LOOK_S)
