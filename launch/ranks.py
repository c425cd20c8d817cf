"""What the ranks of a run are called, and how long they wait for one another."""

from __future__ import annotations

from datetime import timedelta

from lorafusion.errors import LostRankError

# A pipeline may wait for days for its next job. Who hangs is found by the watchdog, not by a timer
# in each transfer.
FOREVER = timedelta(days=10_000)


def rank_name(rank: int) -> str:
    """As messages call it. There is one rank a stage, with the same number."""
    return f"rank {rank} (stage {rank})"


def lost_rank(rank: int, why: object) -> LostRankError:
    """The error that says so; ``why`` is shown behind the name."""
    return LostRankError(f"{rank_name(rank)} is gone: {_first_sentence(str(why))}")


def _first_sentence(text: str) -> str:
    """Without gloo's source line in front and advice behind."""
    text = text.rpartition("] ")[2] if text.startswith("[") and "] " in text else text
    return text.split(". ")[0].strip().rstrip(".") + "."
