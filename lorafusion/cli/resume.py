"""``lorafusion resume ID``."""

from __future__ import annotations

from lorafusion.cli.asking import ask_all
from lorafusion.cli.store_options import Store
from lorafusion.cli.store_views import Names


def command(names: Names, store: Store = "") -> None:
    """Let a paused job go on.

    Exit code: 0 asked for; 2 where there is no such job, or it has ended.
    """
    from lorafusion.jobs.store.states import Wanted

    ask_all(names, Wanted.RUN, store)
