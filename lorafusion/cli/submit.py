"""``lorafusion submit FILE``: puts a file's jobs into the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lorafusion.cli.options import File
from lorafusion.cli.store_options import Store, store_url
from lorafusion.files import home
from lorafusion.jobs.loading import read_run_file


def command(  # noqa: PLR0913 - one argument an option
    file: File,
    priority: Annotated[int, typer.Option(help="The higher goes first.")] = 0,
    key: Annotated[
        str, typer.Option(help="Your name for this submission: the same key is taken once.")
    ] = "",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder in which each job gets one, by its id."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until all of them have ended.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
    store: Store = "",
) -> None:
    """Submit all jobs of a file, or none; prints their ids. No server need run.

    Exit code: 0; with --wait 1 where one failed or was cancelled; 2 bad input.
    """
    run = read_run_file(file)
    spec = run.valid()
    from lorafusion.cli.store_views import JobsView, follow_to_the_end
    from lorafusion.jobs.store.database import Database
    from lorafusion.jobs.store.submitting import Submission, submit

    for note in run.notes:
        typer.echo(f"note: {note}", err=True)
    database = Database(store_url(store))
    root = output or Path(spec.output_dir or home() / "jobs")
    found = submit(database, Submission(spec, str(file), root, priority, key or None))
    if as_json:
        typer.echo(json.dumps([job.id for job in found]))
    else:
        for job in found:
            typer.echo(job.id)
    if wait:
        ended = follow_to_the_end(database, [job.id for job in found], JobsView(err=True))
        raise typer.Exit(0 if all(job.state == "succeeded" for job in ended) else 1)
