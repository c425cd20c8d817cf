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
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from lorafusion.planner.board import Board, Stay

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

__all__ = ["Moves", "Part", "WindowModel"]

Moves = list[tuple[Stay, dict[int, list[int]]]]
"""Steps, and where all of their samples come to stand."""


@dataclass(frozen=True, slots=True)
class Part:
    """What of a step stands in the window.

    Attributes:
        stay: The step.
        reach: Places of the window that what does not move lets it stand in.
        groups: Load -> positions in the batch of the samples of that load.
        counts: Load and place -> how many samples of that load stand there.
        used: Place -> whether any stand there.
        ended: Place -> whether none stand behind it; only where the next step of the job is in the
            window too.
    """

    stay: Stay
    reach: range
    groups: Mapping[int, Sequence[int]]
    counts: dict[tuple[int, int], cp_model.IntVar]
    used: dict[int, cp_model.IntVar]
    ended: dict[int, cp_model.IntVar]


class WindowModel:
    """The model of one window.

    Attributes:
        model: All rules, and no objective.
        places: Those of the window.
        loads: Load of each of them in which samples may stand.
        parts: What of the steps stands in it.
    """

    def __init__(self, board: Board, places: range) -> None:
        from ortools.sat.python import cp_model

        self.model = cp_model.CpModel()
        self.places = places
        self.loads: dict[int, cp_model.LinearExprT] = {}
        self.parts: list[Part] = []
        self._board = board
        for stays in board.stays:
            self._add_job(stays)
        self._fill_places()

    @property
    def size(self) -> int:
        """Number of counts to decide."""
        return sum(len(part.counts) for part in self.parts)

    def hint(self) -> None:
        """Let the solver begin with the draft as it is."""
        for part in self.parts:
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
        for part in self.parts:
            at = defaultdict[int, list[int]](list)
            for place, positions in part.stay.at.items():
                if place not in self.places:
                    at[place] += positions
            left = {load: list(positions) for load, positions in part.groups.items()}
            for (load, place), count in part.counts.items():
                for _ in range(value(count)):
                    at[place].append(left[load].pop())
            moves.append((part.stay, dict(at)))
        return moves

    def _add_job(self, stays: Sequence[Stay]) -> None:
        before = None
        for stay in stays:
            part = self._part(stay) if self._moves(stay) else None
            if part is not None:
                self._add(part)
                if before is not None:
                    self._follows(before, part)
            before = part

    def _moves(self, stay: Stay) -> bool:
        return stay.movable and any(place in self.places for place in stay.at)

    def _part(self, stay: Stay) -> Part:
        board, places = self._board, self.places
        first, last = places.start, places.stop - 1
        before = board.stays[stay.job][stay.index - 1] if stay.index else None
        if stay.first >= first and not (before and self._moves(before)):
            first = max(first, board.first_allowed(stay))
        behind = board.next(stay)
        if stay.last <= last and not (behind and self._moves(behind)):
            last = min(last, board.last_allowed(stay))
        groups = defaultdict[int, list[int]](list)
        for place, positions in stay.at.items():
            for position in positions if place in places else ():
                groups[stay.entry.batch.loads[position]].append(position)
        return Part(stay, range(first, last + 1), groups, {}, {}, {})

    def _add(self, part: Part) -> None:
        """Each sample of the part stands somewhere."""
        model, kinds = self.model, self._board.kinds
        places = [place for place in part.reach if kinds[place] != "eval"]
        for place in places:
            part.used[place] = model.new_bool_var("")
        for load, positions in part.groups.items():
            most = len(positions)
            for place in places:
                count = part.counts[load, place] = model.new_int_var(0, most, "")
                model.add(count <= most * part.used[place])
            model.add(sum(part.counts[load, place] for place in places) == most)
        for place in places:
            model.add(sum(part.counts[load, place] for load in part.groups) >= part.used[place])
        # Implied, but not by the linear relaxation.
        whole = all(place in self.places for place in part.stay.at)
        model.add(sum(part.used.values()) >= (part.stay.bins if whole else 1))
        self.parts.append(part)

    def _follows(self, before: Part, part: Part) -> None:
        """Two steps of a job: the second begins a gap after the end of the first."""
        model, gap, start = self.model, self._board.gap(before.stay), self.places.start
        for place in self.places:
            before.ended[place] = model.new_bool_var("")
        for earlier, later in pairwise(before.ended.values()):
            model.add_implication(earlier, later)
        for place, used in before.used.items():
            if place > start:
                model.add_implication(used, ~before.ended[place - 1])
        for place, used in part.used.items():
            if place - gap >= start:
                model.add_implication(used, before.ended[place - gap])
            else:
                model.add(used == 0)

    def _fill_places(self) -> None:
        """No place holds more than the capacity, nor anything beside a job that is alone."""
        model, limits = self.model, self._board.limits
        for place in self.places:
            here = [part for part in self.parts if place in part.used]
            if not here:
                continue
            samples = sum(load * part.counts[load, place] for part in here for load in part.groups)
            load = samples + limits.segment_load * sum(part.used[place] for part in here)
            model.add(load <= limits.capacity)
            if limits.place_load:
                occupied = model.new_bool_var("")
                model.add_max_equality(occupied, [part.used[place] for part in here])
                load += limits.place_load * occupied
            self.loads[place] = load
            for part in here:
                if self._board.chains[part.stay.job].alone:
                    for other in here:
                        if other is not part:
                            model.add_at_most_one([part.used[place], other.used[place]])
