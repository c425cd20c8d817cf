"""Options that all commands of the job service have in common."""

from __future__ import annotations

from typing import Annotated

import typer

Store = Annotated[
    str,
    typer.Option(
        envvar="LORAFUSION_STORE",
        help="The store of jobs, a URL of SQLAlchemy; by default a file in $LORAFUSION_HOME.",
        show_default=False,
    ),
]


def store_url(given: str) -> str:
    """The store that is meant."""
    from lorafusion.jobs.store.database import default_url

    return given or default_url()
