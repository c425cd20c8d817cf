"""Even out a plan at a fixed number of places: samples move inside the windows of their steps.

Microbatches that are S·D neighbours are in the pipeline at the same time, and the slowest sets the
pace: the time of a plan is, but for a constant, the sum over all runs of S·D neighbours of the
largest load among them. The window of a step reaches from S·D places after the step before it to
S·D places before the step behind it, so no move breaks the order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heapreplace

from lorafusion.planner.chain import Chain, Entry
from lorafusion.planner.draft import Draft, DraftPlace
from lorafusion.planner.plan import Limits, PlaceKind

__all__ = ["balance", "draft_loads", "pace"]

REACH = 2
"""How far from where it is a step may move in one sweep, in units of S·D places."""


def pace(loads: Sequence[int], distance: int) -> int:
    """Sum over all runs of ``distance`` neighbours of the largest load; ramps count as empty."""
    return _pace_between(loads, distance, 0, len(loads) - 1)


def _pace_between(loads: Sequence[int], distance: int, first: int, last: int) -> int:
    """The same over the runs that touch places ``first`` to ``last``."""
    low = max(0, first - distance + 1)
    touched = loads[low : last + distance]
    runs = range(first - distance + 1 - low, last + 1 - low)
    return sum(max(touched[max(0, run) : run + distance], default=0) for run in runs)


def draft_loads(draft: Draft, chains: Sequence[Chain], limits: Limits) -> list[int]:
    """Load of each place."""
    return _Board(draft, chains, limits).loads


def balance(
    draft: Draft, chains: Sequence[Chain], limits: Limits, *, sweeps: int = 4
) -> list[DraftPlace]:
    """The draft with its samples spread so that its pace is lower, where that is possible.

    Each step in turn is taken out and put back, its largest samples first, each to the least loaded
    place of its window; it stays so where the pace has fallen.
    """
    board = _Board(draft, chains, limits)
    if limits.distance > 1:
        for _ in range(sweeps):
            if not sum(board.spread(stay) for stay in board.stays()):
                break
    return board.draft()


@dataclass(slots=True)
class _Stay:
    """Where one step or eval of a job stands: place -> positions in its batch."""

    job: int
    index: int
    entry: Entry
    at: dict[int, list[int]] = field(default_factory=dict[int, list[int]])


class _Board:
    """The draft by steps instead of by places."""

    def __init__(self, draft: Draft, chains: Sequence[Chain], limits: Limits) -> None:
        self._chains = chains
        self._limits = limits
        self._some_alone = any(chain.alone for chain in chains)
        self._kinds: list[PlaceKind] = [place.kind for place in draft]
        self._jobs: list[set[int]] = [set(place.taken) for place in draft]
        self._stays: list[list[_Stay]] = [[] for _ in chains]
        self.loads = [0] * len(draft)
        left = [0] * len(chains)
        for place, drafted in enumerate(draft):
            for job, positions in drafted.taken.items():
                stays = self._stays[job]
                if not left[job]:
                    entry = chains[job].entries[len(stays)]
                    stays.append(_Stay(job, len(stays), entry))
                    left[job] = len(entry.order)
                stays[-1].at[place] = list(positions)
                left[job] -= len(positions)
                loads = stays[-1].entry.batch.loads
                self.loads[place] += limits.segment_load + sum(loads[p] for p in positions)

    def stays(self) -> Iterator[_Stay]:
        """Steps that may move, in the order in which they begin."""
        movable = [stay for stays in self._stays for stay in stays if stay.entry.kind == "train"]
        return iter(sorted(movable, key=lambda stay: (min(stay.at), stay.job)))

    def spread(self, stay: _Stay) -> bool:
        """Spread one step over its window if that lowers the pace."""
        window = self._window(stay)
        # What is level already cannot be bettered by moving even the smallest sample.
        level = max(self.loads[place] for place in stay.at) - stay.entry.loads[0]
        if min((self.loads[place] for place in window), default=level) >= level:
            return False
        new = self._spread_over(stay, window)
        if new is None:
            return False
        touched = [*window, *stay.at]
        first, last = min(touched), max(touched)
        before = self._cost(first, last)
        old = dict(stay.at)
        self._put(stay, new)
        after = self._cost(first, last)
        if after < before:
            return True
        self._put(stay, old)
        return False

    def _cost(self, first: int, last: int) -> tuple[int, int]:
        """Pace of a part, then its unevenness, so that a plateau of the former is no end."""
        pace = _pace_between(self.loads, self._limits.distance, first, last)
        return pace, sum(load * load for load in self.loads[first : last + 1])

    def _window(self, stay: _Stay) -> list[int]:
        """Places that the step may stand in, but none far from where it is now."""
        chain, stays = self._chains[stay.job], self._stays[stay.job]
        first, last = chain.queue.ready_at, len(self.loads) - 1
        if stay.index:
            first = max(stays[stay.index - 1].at) + chain.gap(stay.index - 1, self._limits)
        if stay.index + 1 < len(stays):
            last = min(stays[stay.index + 1].at) - chain.gap(stay.index, self._limits)
        elif stay.index + 1 < len(chain.entries) or chain.queue.remaining_steps > len(
            chain.queue.batches
        ):
            last = max(stay.at)  # what follows in the next window must not wait longer
        reach = REACH * self._limits.distance
        first, last = max(first, min(stay.at) - reach), min(last, max(stay.at) + reach)
        return [place for place in range(first, last + 1) if self._is_open(place, stay.job)]

    def _is_open(self, place: int, job: int) -> bool:
        if self._kinds[place] == "eval":
            return False
        others = self._jobs[place] - {job}
        if not self._some_alone or not others:
            return True
        return not (self._chains[job].alone or any(self._chains[other].alone for other in others))

    def _spread_over(self, stay: _Stay, window: Sequence[int]) -> dict[int, list[int]] | None:
        """The step's samples on the least loaded places of its window; None where one fits none."""
        segment, capacity = self._limits.segment_load, self._limits.capacity
        batch = stay.entry.batch
        without = {place: self.loads[place] for place in window}
        for place, positions in stay.at.items():
            without[place] -= segment + sum(batch.loads[position] for position in positions)
        heap = [(load + segment, place) for place, load in without.items()]
        heapify(heap)
        here = {position for positions in stay.at.values() for position in positions}
        new: dict[int, list[int]] = {}
        for position in reversed(stay.entry.order):
            if position not in here:
                continue  # it stands in another window of the plan
            load, place = heap[0]
            load += batch.loads[position]
            if load > capacity:
                return None
            heapreplace(heap, (load, place))
            new.setdefault(place, []).append(position)
        return new

    def _put(self, stay: _Stay, at: dict[int, list[int]]) -> None:
        batch, segment = stay.entry.batch, self._limits.segment_load
        for sign, moved in ((-1, stay.at), (1, at)):
            for place, positions in moved.items():
                load = segment + sum(batch.loads[position] for position in positions)
                self.loads[place] += sign * load
                if sign > 0:
                    self._jobs[place].add(stay.job)
                else:
                    self._jobs[place].discard(stay.job)
        stay.at = at

    def draft(self) -> list[DraftPlace]:
        """The places as they are now; what was emptied at the end is gone."""
        taken: list[dict[int, tuple[int, ...]]] = [{} for _ in self.loads]
        for stays in self._stays:
            for stay in stays:
                for place, positions in stay.at.items():
                    taken[place][stay.job] = tuple(sorted(positions))
        places: list[DraftPlace] = []
        for kind, jobs in zip(self._kinds, taken, strict=True):
            if kind != "eval":
                kind = "train" if jobs else "noop"
            places.append(DraftPlace(kind, jobs))
        return places
