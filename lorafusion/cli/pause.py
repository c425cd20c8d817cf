"""``lorafusion pause ID``."""

from __future__ import annotations

from lorafusion.cli.asking import ask_all
from lorafusion.cli.store_options import Store
from lorafusion.cli.store_views import Names


def command(names: Names, store: Store = "") -> None:
    """Save a job and take it out, until it is resumed.

    Exit code: 0 asked for; 2 where there is no such job, or it has ended.
    """
    from lorafusion.jobs.store.states import Wanted

    ask_all(names, Wanted.PAUSE, store)
