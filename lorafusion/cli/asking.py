"""What ``cancel``, ``pause`` and ``resume`` have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from lorafusion.cli.store_options import store_url

if TYPE_CHECKING:
    from lorafusion.jobs.store.states import Wanted


def ask_all(names: Sequence[str], wanted: Wanted, store: str) -> None:
    """Ask the same of several jobs, and print how each stands then."""
    from lorafusion.jobs.store.asking import ask
    from lorafusion.jobs.store.database import Database

    database = Database(store_url(store))
    for name in names:
        job = ask(database, name, wanted)
        typer.echo(f"{job.id} {job.state.value}")
