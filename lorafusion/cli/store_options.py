"""Options that all commands of the job service have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

VARIABLE = "LORAFUSION_STORE"

Store = Annotated[
    str,
    typer.Option(
        envvar=VARIABLE,
        help="The store of jobs: a URL of SQLAlchemy, or the folder of a run of `train`; "
        "by default a file in $LORAFUSION_HOME.",
        show_default=False,
    ),
]


def store_url(given: str) -> str:
    """The store that is meant."""
    from lorafusion.jobs.store.database import default_url, url_of

    if given and "://" not in given:
        return url_of(Path(given))
    return given or default_url()
