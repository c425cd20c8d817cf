"""``lorafusion schema``: the job file's JSON schema, or its page of the docs."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from lorafusion.jobs.reference import file_schema, markdown


def command(
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="The page docs/job-file.md instead.")
    ] = False,
) -> None:
    """Print the JSON schema of job files, for editors."""
    typer.echo(
        markdown() if as_markdown else json.dumps(file_schema(), indent=2), nl=not as_markdown
    )
