"""Ranks that share one base's weights go through it together: who computes, and who only helps.

A pass over the base is one forward or one backward of it. How many a rank needs depends on what
happens there: a place is cut in two where memory runs out, its jobs run one by one where one of
them raises, and a no-op needs none. So before each pass the ranks agree on which kind comes next: a
forward, if any of them wants one; else a backward, if any wants one; else their turn is over. Who
wants none of that kind takes part with its weights alone.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from lorafusion.models.sharded import PassKind, ShardedWeights

_KINDS: tuple[PassKind | None, ...] = (None, "backward", "forward")


class Passes(Protocol):
    """How a rank goes over the base."""

    def forward(self) -> AbstractContextManager[None]:
        """A block with one forward in it."""
        ...

    def backward(self) -> AbstractContextManager[None]:
        """A block with one backward in it."""
        ...

    def finish(self) -> None:
        """This rank is through with its turn; waits until all are."""
        ...


class OwnPasses:
    """Of a rank that has all of its weights: nobody waits for it."""

    def forward(self) -> AbstractContextManager[None]:
        """Nothing is to be done."""
        return nullcontext()

    def backward(self) -> AbstractContextManager[None]:
        """Nothing is to be done."""
        return nullcontext()

    def finish(self) -> None:
        """Nothing is to be done."""


class SharedPasses:
    """Of ranks whose weights are cut over them."""

    def __init__(self, weights: ShardedWeights, largest: Callable[[int], int]) -> None:
        """No pass has begun.

        Args:
            weights: This rank's.
            largest: A number of each rank -> the largest of them; a collective.
        """
        self._weights = weights
        self._largest = largest

    @contextmanager
    def forward(self) -> Generator[None]:
        """Comes when the others are ready for one.

        Raises:
            LostRankError: Another rank is gone.
        """
        self._wait_for("forward")
        with self._weights.walk("forward"):
            yield

    @contextmanager
    def backward(self) -> Generator[None]:
        """Comes when no rank wants a forward any more.

        Raises:
            LostRankError: Another rank is gone.
        """
        self._wait_for("backward")
        with self._weights.walk("backward"):
            yield

    def finish(self) -> None:
        """Take part in the passes of the others until none wants one.

        Raises:
            LostRankError: Another rank is gone.
        """
        self._wait_for(None)

    def _wait_for(self, wanted: PassKind | None) -> None:
        while (kind := _KINDS[self._largest(_KINDS.index(wanted))]) != wanted:
            assert kind is not None, "the others want more than this rank does"
            with self._weights.walk(kind):
                pass
