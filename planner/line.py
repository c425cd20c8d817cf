"""How far one job has come while places are filled."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy

from lorafusion.planner.chain import Chain
from lorafusion.planner.plan import Limits

__all__ = ["Line"]


class Line:
    """The open step or eval of one job, and what is left of it.

    Attributes:
        number: Of the job among the queues.
        chain: All of the job.
        ready: First place where the open entry may stand.
        kind: Of the open entry.
        loads: Loads of its samples that are not placed, ascending.
        load: Their sum.
        begun: Whether some of its samples are placed.
        length: Places to the end of the chain when nothing is in its way.
        left: Load of all that is not placed.
    """

    def __init__(self, number: int, chain: Chain, limits: Limits) -> None:
        self.number = number
        self.chain = chain
        self._limits = limits
        self._room = limits.capacity - limits.segment_load
        self.ready = chain.queue.ready_at
        self.left = sum(entry.load for entry in chain.entries)
        self._open(0)

    def copy(self) -> Line:
        """One that goes its own way from here."""
        other = copy(self)
        other.loads = list(self.loads)
        other._order = list(self._order)
        return other

    def _open(self, index: int) -> None:
        self._index = index
        self.loads: list[int] = []
        self._order: list[int] = []
        if self.done:
            return
        entry = self.chain.entries[index]
        self.kind = entry.kind
        self.loads += entry.loads
        self._order += entry.order
        self.load = entry.load
        self.begun = False
        self.length = entry.bins + entry.tail

    @property
    def done(self) -> bool:
        """Whether everything is placed."""
        return self._index == len(self.chain.entries)

    def take(self, indices: Iterable[int], place: int) -> tuple[int, ...]:
        """Take samples out, by descending index; returns their positions in the batch."""
        positions: list[int] = []
        taken = 0
        for index in indices:
            positions.append(self._order.pop(index))
            taken += self.loads.pop(index)
        self.load -= taken
        self.left -= taken
        if self.loads:
            self.begun = True
            self.length = -(-self.load // self._room) + self.chain.entries[self._index].tail
        else:
            self.ready = place + self.chain.gap(self._index, self._limits)
            self._open(self._index + 1)
        return tuple(sorted(positions))

    def take_positions(self, positions: Iterable[int], place: int) -> None:
        """Take samples out by their positions in the batch."""
        where = {position: index for index, position in enumerate(self._order)}
        self.take(sorted((where[position] for position in positions), reverse=True), place)
