"""``lorafusion cancel ID``."""

from __future__ import annotations

from lorafusion.cli.asking import ask_all
from lorafusion.cli.store_options import Store
from lorafusion.cli.store_views import Names


def command(names: Names, store: Store = "") -> None:
    """Give a job up. What it has done stays in its folder; nothing is exported.

    Exit code: 0 asked for; 2 where there is no such job, or it has ended.
    """
    from lorafusion.jobs.store.states import Wanted

    ask_all(names, Wanted.CANCEL, store)
