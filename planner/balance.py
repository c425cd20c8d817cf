"""Even out a plan at a fixed number of places: samples move inside the windows of their steps.

Microbatches that are S·D neighbours are in the pipeline at the same time, and the slowest sets the
pace: the time of a plan is, but for a constant, the sum over all runs of S·D neighbours of the
largest load among them. Three kinds of moves bring it down, each kept where it does:

- *spread*: a step is taken out and put back, each sample on the least loaded place of its window;
- *share*: two neighbouring steps of a job are, and the place where the first ends moves;
- *fit*: a step is put back with each sample where the pace rises least.

A move is tried again only after something near it has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from lorafusion.planner.board import Board, Stay, Where
from lorafusion.planner.chain import Chain
from lorafusion.planner.completion import SearchLimit
from lorafusion.planner.draft import Draft, DraftPlace
from lorafusion.planner.plan import Limits
from lorafusion.planner.stretch import Stretch, pace

__all__ = ["balance", "draft_loads", "pace"]

REACH = 2
"""How far from where it is a step may move in one sweep, in units of S·D places."""

ENDS = 2
"""How far the place where a step ends may move when two steps share anew; 4 gains no more."""

WORK = 150_000
"""Samples put somewhere, about 0.1 s."""


def draft_loads(draft: Draft, chains: Sequence[Chain], limits: Limits) -> list[int]:
    """Load of each place, with what a place that holds anything takes."""
    # Not by a Board: a search asks for them of every plan that it finishes.
    index, placed = [0] * len(chains), [0] * len(chains)
    loads: list[int] = []
    for place in draft:
        load = limits.place_load if place.taken else 0
        for job, positions in place.taken.items():
            entry = chains[job].entries[index[job]]
            load += limits.segment_load
            load += sum([entry.batch.loads[position] for position in positions])
            placed[job] += len(positions)
            if placed[job] == len(entry.order):
                index[job] += 1
                placed[job] = 0
        loads.append(load)
    return loads


def balance(
    draft: Draft,
    chains: Sequence[Chain],
    limits: Limits,
    *,
    sweeps: int = 4,
    work: int = WORK,
) -> list[DraftPlace]:
    """The draft with its samples spread so that its pace is lower, where that is possible.

    Args:
        draft: A valid one.
        chains: What it was made from.
        limits: What it was made for.
        sweeps: Most sweeps over all steps with the first two kinds of moves, and then with all.
        work: Most samples to put somewhere, over all moves; the same on any machine.
    """
    board = Board(draft, chains, limits)
    if limits.distance > 1:
        _Balancer(board, SearchLimit(work)).run(sweeps)
    return board.draft()


class _Balancer:
    def __init__(self, board: Board, limit: SearchLimit) -> None:
        self._board = board
        self._limit = limit
        self._distance = board.limits.distance
        self._moves = 0
        self._changed = [0] * len(board.loads)  # the move that changed a place last
        self._tried: dict[tuple[str, int, int], int] = {}  # moves made when it was tried last

    def run(self, sweeps: int) -> None:
        """Sweeps over all steps until nothing moves, ``sweeps`` were made, or the limit is hit."""
        quick = (self._spread, self._share)
        for kinds in (quick, (*quick, self._fit)):
            for _ in range(sweeps):
                if not sum(self._sweep(kind) for kind in kinds):
                    break

    def _sweep(self, kind: Callable[[Stay], bool]) -> int:
        return sum(kind(stay) for stay in self._board.movable() if not self._limit.reached)

    def _spread(self, stay: Stay) -> bool:
        return self._alone(stay, "spread")

    def _fit(self, stay: Stay) -> bool:
        return self._alone(stay, "fit")

    def _alone(self, stay: Stay, kind: Literal["spread", "fit"]) -> bool:
        first, last = self._window(stay, stay)
        if self._nothing_new(kind, stay, first, last):
            return False
        places = self._board.open_places(stay.job, first, last)
        if kind == "spread" and self._is_level((stay,), places):
            return False
        new = Stretch(self._board, first, last, self._limit)
        if kind == "fit" and (new.is_even() or not any(map(new.is_peak, stay.at))):
            return False
        cost = new.cost()
        new.remove(stay)
        taken = new.level(stay, places) if kind == "spread" else new.fit(stay, places)
        return taken is not None and new.cost() < cost and self._put((stay, taken))

    def _is_level(self, stays: Sequence[Stay], places: Sequence[int]) -> bool:
        """Whether moving even the smallest sample of the steps among ``places`` gains nothing."""
        loads = self._board.loads
        most = max(loads[place] for stay in stays for place in stay.at)
        least = min(stay.entry.loads[0] for stay in stays)
        return min((loads[place] for place in places), default=most) >= most - least

    def _share(self, stay: Stay) -> bool:
        behind = self._board.next(stay)
        if behind is None or not behind.movable:
            return False
        first, last = self._window(stay, behind)
        if self._nothing_new("share", stay, first, last):
            return False
        if self._is_level((stay, behind), self._board.open_places(stay.job, first, last)):
            return False
        stretch = Stretch(self._board, first, last, self._limit)
        cost, best = stretch.cost(), None
        stretch.remove(stay, behind)
        least = max(first + stay.bins - 1, stay.last - ENDS)
        most = min(last - behind.bins + 1 - self._board.gap(stay), stay.last + ENDS)
        for end in range(least, most + 1):
            new = stretch.copy()
            taken = self._level_both(new, (stay, first, end), (behind, last))
            if taken is not None and (found := new.cost()) < cost:
                cost, best = found, taken
        return best is not None and self._put((stay, best[0]), (behind, best[1]))

    def _level_both(
        self, stretch: Stretch, stay: tuple[Stay, int, int], behind: tuple[Stay, int]
    ) -> tuple[Where, Where] | None:
        """A step between two places, and the next from where the order lets it stand to a third."""
        before, first, end = stay
        start = end + self._board.gap(before)
        taken = stretch.level(before, self._board.open_places(before.job, first, end))
        if taken is None:
            return None
        rest = self._board.open_places(before.job, start, behind[1])
        taken_behind = stretch.level(behind[0], rest)
        return None if taken_behind is None else (taken, taken_behind)

    def _window(self, stay: Stay, behind: Stay) -> tuple[int, int]:
        """Where the two may stand, but nothing far from where it is now."""
        reach = REACH * self._distance
        first = max(self._board.first_allowed(stay), stay.first - reach)
        return first, min(self._board.last_allowed(behind), behind.last + reach)

    def _nothing_new(self, kind: str, stay: Stay, first: int, last: int) -> bool:
        """Whether this was tried before, and nothing has changed since near these places."""
        key = (kind, stay.job, stay.index)
        tried = self._tried.get(key, -1)
        self._tried[key] = self._moves
        near = self._changed[max(0, first - self._distance + 1) : last + self._distance]
        return max(near) <= tried

    def _put(self, *moves: tuple[Stay, Where]) -> bool:
        self._moves += 1
        for stay, at in moves:
            for place in (*stay.at, *at):
                self._changed[place] = self._moves
        self._board.put(*moves)
        return True
