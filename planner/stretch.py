"""The loads of a stretch of places, to try moves on before they are made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from heapq import heapify, heapreplace
from itertools import accumulate
from operator import mul

from lorafusion.planner.board import Board, Stay
from lorafusion.planner.completion import SearchLimit

__all__ = ["Cost", "Stretch", "pace"]

Cost = tuple[int, int]
"""Pace of a part, then its unevenness, so that a plateau of the former is no end."""

EVEN = 0.004
"""Of the pace, what is not worth a move: a third of the work for 64 jobs and full places."""

Taken = dict[int, list[int]]


def pace(loads: Sequence[int], distance: int) -> int:
    """Sum over all runs of ``distance`` neighbours of the largest load; ramps count as empty."""
    ramp = [0] * (distance - 1)
    return sum(_peaks([*ramp, *loads, *ramp], distance))


def _peaks(loads: Sequence[int], distance: int) -> list[int]:
    """The largest load of each whole run of neighbours."""
    if distance == 1:
        return list(loads)
    # Slices side by side: a third of the time of a max() over each run's slice.
    return list(map(max, *(loads[index:] for index in range(distance))))


class Stretch:
    """Places ``first`` to ``last``, and those that share a run with them.

    Attributes:
        loads: Their loads, from place ``first`` - S·D + 1 on, 0 where there is no place.
    """

    def __init__(self, board: Board, first: int, last: int, limit: SearchLimit) -> None:
        """``limit`` is spent by a unit for each sample that is put somewhere, about 0.5 µs."""
        self._board = board
        self._limit = limit
        self._distance = board.limits.distance
        self._start = first - self._distance + 1
        end = last + self._distance
        inside = board.loads[max(0, self._start) : end]
        self._before, self._behind = max(0, -self._start), max(0, end - len(board.loads))
        self.loads = [0] * self._before + inside + [0] * self._behind

    def copy(self) -> Stretch:
        """One that goes its own way from here."""
        other = copy(self)
        other.loads = list(self.loads)
        return other

    def cost(self) -> Cost:
        """Of all its places as they are now."""
        self._limit.spend(len(self.loads) * self._distance // 8)
        return sum(_peaks(self.loads, self._distance)), sum(map(mul, self.loads, self.loads))

    def is_even(self) -> bool:
        """Whether the peaks are so little above the means of their runs that nothing is to gain."""
        loads = self.loads[self._before : len(self.loads) - self._behind]
        total = [0, *accumulate(loads)]
        means = sum(total[self._distance :]) - sum(total[: -self._distance])
        return means >= (1 - EVEN) * self._distance * sum(_peaks(loads, self._distance))

    def is_peak(self, place: int) -> bool:
        """Whether the pace falls, if only a little, when the place becomes less loaded."""
        index = place - self._start
        near = self.loads[index - self._distance + 1 : index + self._distance]
        return self.loads[index] == min(_peaks(near, self._distance))

    def remove(self, *stays: Stay) -> None:
        """Take steps of one job out of the loads."""
        for stay in stays:
            for place, positions in stay.at.items():
                load = stay.load(positions)
                self.loads[place - self._start] = self._board.without(place, stay.job, load)

    def level(self, stay: Stay, places: Iterable[int]) -> Taken | None:
        """Put a step in: each sample, the largest first, to the least loaded of ``places``.

        Returns where they went; None where one fits nowhere, and then the loads are not to be used.
        """
        limits, loads = self._board.limits, stay.entry.batch.loads
        most = limits.capacity + limits.place_load
        heap = [(self._with_segment(place), place) for place in places]
        heapify(heap)
        self._limit.spend(20 + len(stay.order))
        taken: Taken = {}
        for position in stay.order:
            load, place = heap[0] if heap else (most, 0)
            load += loads[position]
            if load > most:
                return None
            heapreplace(heap, (load, place))
            taken.setdefault(place, []).append(position)
        for load, place in heap:
            if place in taken:
                self.loads[place - self._start] = load
        return taken

    def fit(self, stay: Stay, places: Sequence[int]) -> Taken | None:
        """Put a step in: each sample, the largest first, to where the pace rises least.

        Of equal places the least loaded one. Returns as :meth:`level`.
        """
        limits, loads, distance = self._board.limits, stay.entry.batch.loads, self._distance
        peaks = _peaks(self.loads, distance)
        most = limits.capacity + limits.place_load
        found = {place: self._with_segment(place) for place in places}
        self._limit.spend(20 + len(stay.order) * len(found))
        taken: Taken = {}
        for position in stay.order:
            best = (most * distance, 0, -1)
            for place, load in found.items():
                load += loads[position]
                first = place - self._start - distance + 1
                rise = sum([load - peak for peak in peaks[first : first + distance] if load > peak])
                if load <= most and (rise, load, place) < best:
                    best = (rise, load, place)
            rise, load, place = best
            if place < 0:
                return None
            found[place] = load
            taken.setdefault(place, []).append(position)
            for run in range(place - self._start - distance + 1, place - self._start + 1):
                peaks[run] = max(peaks[run], load)
        for place in taken:
            self.loads[place - self._start] = found[place]
        return taken

    def _with_segment(self, place: int) -> int:
        """Load of a place once it holds one more job, without the job's samples."""
        limits = self._board.limits
        return (self.loads[place - self._start] or limits.place_load) + limits.segment_load
