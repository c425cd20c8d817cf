"""How long the ranks of a run wait for one another, and what is said of one that is lost."""

from __future__ import annotations

from datetime import timedelta

from lorafusion.errors import LostRankError

# A pipeline may wait for days for its next job. Who hangs is found by the watchdog, not by a timer
# in each transfer.
FOREVER = timedelta(days=10_000)


def lost_rank(name: str, why: object) -> LostRankError:
    """The error that says so.

    Args:
        name: Of the rank, see :meth:`lorafusion.training.grid.Grid.name`.
        why: Shown behind it.
    """
    return LostRankError(f"{name} is gone: {_first_sentence(str(why))}")


def _first_sentence(text: str) -> str:
    """Without gloo's source line in front and advice behind."""
    text = text.rpartition("] ")[2] if text.startswith("[") and "] " in text else text
    return text.split(". ")[0].strip().rstrip(".") + "."
