"""CP-SAT model of a run of places of a draft, with everything before and behind it fixed.

What is decided is how many samples of each load of each step stand in each place: samples of equal
load are interchangeable, so they are counted, not told apart. The rules are those of
:mod:`lorafusion.planner.verify`. A step in the window begins no sooner than what ends in front of
the window lets it, and ends in time for what begins behind it. Of two steps of a job that are both
in it, "the first has ended" is a literal for each place, true from some place on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from lorafusion.planner.board import Board, Stay

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

__all__ = ["Moves", "Window", "WindowModel"]

Moves = list[tuple[Stay, dict[int, list[int]]]]
"""Steps, and where all of their samples come to stand."""


@dataclass(frozen=True, slots=True)
class Window:
    """Places ``first`` to ``end`` - 1 of a draft, which are to become ``fewer`` places fewer.

    What stands behind them moves up by that many places.
    """

    first: int
    end: int
    fewer: int = 0

    @property
    def last(self) -> int:
        """Last place of the window when it is done."""
        return self.end - self.fewer - 1

    def moved(self, place: int) -> int:
        """Where a place is when it is done."""
        return place - self.fewer if place >= self.end else place

    def holds(self, place: int) -> bool:
        """Whether the place is in it as it is now."""
        return self.first <= place < self.end


@dataclass(slots=True)
class _Part:
    """What of a step stands in the window.

    Attributes:
        stay: The step.
        first: First place that what does not move lets it stand in.
        last: The last.
        groups: Load -> positions in the batch of the samples of that load.
        counts: Load and place -> how many samples of that load stand there.
        used: Place -> whether any stand there.
        ended: Place -> whether none stand behind it; only where the next step of the job is in the
            window too.
    """

    stay: Stay
    first: int
    last: int
    groups: Mapping[int, Sequence[int]]
    counts: dict[tuple[int, int], cp_model.IntVar] = field(default_factory=dict)
    used: dict[int, cp_model.IntVar] = field(default_factory=dict)
    ended: dict[int, cp_model.IntVar] = field(default_factory=dict)


class WindowModel:
    """The model of one window.

    Attributes:
        model: All rules, and no objective.
        possible: Whether what does not move leaves room at all; where it does not, the model is
            not finished.
        loads: Load of each place in which samples may stand.
    """

    def __init__(self, board: Board, window: Window) -> None:
        from ortools.sat.python import cp_model

        self.model = cp_model.CpModel()
        self.loads: dict[int, cp_model.LinearExprT] = {}
        self._board = board
        self._window = window
        self._parts: list[_Part] = []
        self.possible = all(self._add_job(stays) for stays in board.stays)
        if self.possible:
            self._fill_places()

    @property
    def size(self) -> int:
        """Number of counts to decide."""
        return sum(len(part.counts) for part in self._parts)

    def hint(self) -> None:
        """Let the solver begin with the draft as it is."""
        for part in self._parts:
            for place, used in part.used.items():
                self.model.add_hint(used, place in part.stay.at)
                here = part.stay.at.get(place, ())
                for load, positions in part.groups.items():
                    count = len(set(positions).intersection(here))
                    self.model.add_hint(part.counts[load, place], count)
            for place, ended in part.ended.items():
                self.model.add_hint(ended, part.stay.last <= place)

    def moves(self, value: Callable[[cp_model.IntVar], int]) -> Moves:
        """What a solution, given by the values of its variables, does with the steps."""
        moves: Moves = []
        for part in self._parts:
            at: dict[int, list[int]] = defaultdict(list)
            for place, positions in part.stay.at.items():
                if not self._window.holds(place):
                    at[self._window.moved(place)] += positions
            left = {load: list(positions) for load, positions in part.groups.items()}
            for (load, place), count in part.counts.items():
                for _ in range(value(count)):
                    at[place].append(left[load].pop())
            moves.append((part.stay, dict(at)))
        return moves

    def _add_job(self, stays: Sequence[Stay]) -> bool:
        """Add what of a job is in the window; False where the rest cannot be as it has to be."""
        before = None
        for stay in stays:
            part = self._part(stay) if self._moves(stay) else None
            if part is None:
                if not self._may_stay(stay):
                    return False
            elif part.first > part.last:
                return False
            else:
                self._add(part)
                if before is not None:
                    self._follows(before, part)
            before = part
        return True

    def _moves(self, stay: Stay) -> bool:
        return stay.movable and any(map(self._window.holds, stay.at))

    def _may_stay(self, stay: Stay) -> bool:
        """Whether a step or eval that does not move is far enough from the next, if it is the same.

        An eval may also stand in a place that is to go.
        """
        window, behind = self._window, self._board.next(stay)
        if any(window.last < place < window.end for place in stay.at):
            return False
        if behind is None or self._moves(behind):
            return True
        return window.moved(behind.first) - window.moved(stay.last) >= self._board.gap(stay)

    def _part(self, stay: Stay) -> _Part:
        window, board = self._window, self._board
        first, last = window.first, window.last
        before = board.stays[stay.job][stay.index - 1] if stay.index else None
        if stay.first >= first and not (before and self._moves(before)):
            first = max(first, board.first_allowed(stay))
        behind = board.next(stay)
        if stay.last < window.end and not (behind and self._moves(behind)):
            if behind:
                last = min(last, window.moved(behind.first) - board.gap(stay))
            elif board.goes_on(stay):
                last = min(last, stay.last)
        groups: dict[int, list[int]] = defaultdict(list)
        for place, positions in stay.at.items():
            for position in positions if window.holds(place) else ():
                groups[stay.entry.batch.loads[position]].append(position)
        return _Part(stay, first, last, groups)

    def _add(self, part: _Part) -> None:
        """Each sample of the part stands somewhere."""
        model, kinds = self.model, self._board.kinds
        places = [at for at in range(part.first, part.last + 1) if kinds[at] != "eval"]
        part.used = {place: model.new_bool_var("") for place in places}
        for load, positions in part.groups.items():
            most = len(positions)
            for place in places:
                count = part.counts[load, place] = model.new_int_var(0, most, "")
                model.add(count <= most * part.used[place])
            model.add(sum(part.counts[load, place] for place in places) == most)
        for place in places:
            model.add(sum(part.counts[load, place] for load in part.groups) >= part.used[place])
        # Implied, but not by the linear relaxation.
        whole = part.stay.first >= self._window.first and part.stay.last < self._window.end
        model.add(sum(part.used.values()) >= (part.stay.bins if whole else 1))
        self._parts.append(part)

    def _follows(self, before: _Part, part: _Part) -> None:
        """Two steps of a job: the second begins a gap after the end of the first."""
        model, gap = self.model, self._board.gap(before.stay)
        places = range(self._window.first, self._window.last + 1)
        before.ended = {place: model.new_bool_var("") for place in places}
        for earlier, later in pairwise(before.ended.values()):
            model.add_implication(earlier, later)
        for place, used in before.used.items():
            if place > self._window.first:
                model.add_implication(used, ~before.ended[place - 1])
        for place, used in part.used.items():
            if place - gap >= self._window.first:
                model.add_implication(used, before.ended[place - gap])
            else:
                model.add(used == 0)

    def _fill_places(self) -> None:
        """No place holds more than the capacity, nor anything beside a job that is alone."""
        model, limits = self.model, self._board.limits
        for place in range(self._window.first, self._window.last + 1):
            here = [part for part in self._parts if place in part.used]
            if not here:
                continue
            load = sum(
                load * part.counts[load, place] for part in here for load in part.groups
            ) + limits.segment_load * sum(part.used[place] for part in here)
            model.add(load <= limits.capacity)
            self.loads[place] = load
            if limits.place_load:
                occupied = model.new_bool_var("")
                model.add_max_equality(occupied, [part.used[place] for part in here])
                self.loads[place] = load + limits.place_load * occupied
            alone = [part for part in here if self._board.chains[part.stay.job].alone]
            for part in alone:
                for other in here:
                    if other is not part:
                        model.add_at_most_one([part.used[place], other.used[place]])
