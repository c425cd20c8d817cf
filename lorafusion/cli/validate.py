"""``lorafusion validate FILE``: every problem of a job file, its data, base and folders."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lorafusion.cli.problems import show_problems
from lorafusion.errors import JobFileError
from lorafusion.jobs.loading import read_run_file
from lorafusion.preflight import JobSummary, Preflight, check_run_file

HEADERS = ("job", "dataset", "rows", "rank", "modules", "steps", "trained")


def command(
    file: Annotated[Path, typer.Argument(help="The job file (YAML).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Report every problem of a job file, and of the data, base and folders that it names."""
    try:
        run = read_run_file(file)
        with Console(stderr=True).status("looking at base and data (slower the first time)"):
            result = check_run_file(run)
    except JobFileError as error:
        result = Preflight(error.problems, (), ())
    if as_json:
        typer.echo(json.dumps({"ok": not result.problems, **dataclasses.asdict(result)}, indent=2))
    else:
        _show(file, result)
    if result.problems:
        raise typer.Exit(2)


def _show(file: Path, result: Preflight) -> None:
    console = Console(highlight=False)
    show_problems(result.problems)
    for note in result.notes:
        typer.echo(f"note: {note}")
    if result.problems:
        count = len(result.problems)
        typer.echo(f"{file}: {count} problem{'s' if count > 1 else ''}")
        return
    _show_jobs(console, result.jobs)
    typer.echo(f"{file}: OK")


def _show_jobs(console: Console, jobs: Sequence[JobSummary]) -> None:
    rows = [[_cell(value) for value in dataclasses.astuple(job)] for job in jobs]
    if not console.is_terminal:
        for row in rows:
            typer.echo("  ".join(f"{h}={cell}" for h, cell in zip(HEADERS, row, strict=True)))
        return
    table = Table(*HEADERS)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def _cell(value: object) -> str:
    return "-" if value is None else str(value)
