"""``lorafusion sweep``: a submitted sweep's jobs by their losses, the best marked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lorafusion.cli.store_options import Store, store_url
from lorafusion.errors import OutputError

if TYPE_CHECKING:
    from lorafusion.jobs.ranking import Ranking
    from lorafusion.reports.submitted import SubmittedSweep

_OLDER = 8
"""Sweeps that are named below the newest."""


def command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="[NAME|SUBMISSION]", help="By default the newest submission with a sweep."
        ),
    ] = "",
    output: Annotated[
        str, typer.Option("--output", "-o", help="table, or json.", metavar="table|json")
    ] = "table",
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a page with tables and plots as well."),
    ] = None,
    store: Store = "",
) -> None:
    """Show a submitted sweep's jobs by their losses, the best marked, at any time.

    NAME is the sweep's: its job's in the file; the newest of a name. Exit code: 0, or 2 where
    there is no such sweep.
    """
    if output not in ("table", "json"):
        raise typer.BadParameter(f"--output is {output!r}; allowed: table, json.")
    from lorafusion.jobs.store.database import Database
    from lorafusion.reports.submitted import find_sweeps, list_sweeps, rank

    database = Database(store_url(store))
    known = list_sweeps(database)
    if not known and not name:
        typer.echo(f"no sweeps in {database.place}", err=output == "json")
        if output == "json":
            typer.echo("[]")
        return
    sweeps = find_sweeps(database, name or known[-1].submission)
    made = [rank(sweep) for sweep in sweeps]
    for note in [note for _, notes in made for note in notes]:
        typer.echo(f"note: {note}", err=True)
    rankings = [ranking for ranking, _ in made]
    if html is not None:
        _write(html, sweeps, rankings, [note for _, notes in made for note in notes])
    if output == "json":
        documents = [
            {"submission": sweep.submission, **ranking.to_dict()}
            for sweep, ranking in zip(sweeps, rankings, strict=True)
        ]
        typer.echo(json.dumps(documents, allow_nan=False))
        return
    _show(rankings)
    if not name:
        _name_others([sweep for sweep in known if sweep.submission != sweeps[0].submission])


def _show(rankings: list[Ranking]) -> None:
    from lorafusion.cli.display import make_console
    from lorafusion.cli.sweep_table import show_sweeps

    console: Console = make_console(stderr=False)
    show_sweeps(console, rankings, rest="all are in `lorafusion sweep -o json`")


def _name_others(others: list[SubmittedSweep]) -> None:
    if not others:
        return
    told = [f"{s.name} ({s.submission}, {len(s.jobs)})" for s in others[: -_OLDER - 1 : -1]]
    more = ", ..." if len(others) > _OLDER else ""
    typer.echo(f"\nolder sweeps (submission, jobs): {', '.join(told)}{more}")


def _write(
    path: Path, sweeps: list[SubmittedSweep], rankings: list[Ranking], notes: list[str]
) -> None:
    from lorafusion.files import write_text_atomic
    from lorafusion.reports.document import document, section
    from lorafusion.reports.sweep_section import sweep_section

    names = ", ".join(sweep.name for sweep in sweeps)
    states = [variant.state for ranking in rankings for variant in ranking.rows]
    counts = [f"{states.count(state):,} {state}" for state in dict.fromkeys(states)]
    lead = f"submission {sweeps[0].submission}: {', '.join(counts)}"
    body = section("sweeps", "Sweeps", sweep_section(rankings))
    try:
        write_text_atomic(path, document(f"sweep {names}", lead, body, notes))
    except OSError as error:
        raise OutputError(f"the page {path} cannot be written: {error}") from error
    typer.echo(f"{path}", err=True)
