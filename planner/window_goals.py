"""What CP-SAT brings down in the windows of a draft: its pace, or what stands too late in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from lorafusion.planner.board import Board, Stay
from lorafusion.planner.stretch import pace
from lorafusion.planner.window_model import WindowModel

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

__all__ = ["Goal", "Lateness", "Pace"]


LATE = 1000
"""What being late at all weighs, beside a margin squared of 64 at four stages."""


class Goal(Protocol):
    """A cost of a whole board, of which a window's part can be minimised."""

    def cost(self) -> int:
        """Of the board as it is."""
        ...

    def minimise(self, window: WindowModel) -> bool:
        """Set the objective of a window; False where it has nothing to gain."""
        ...


class Pace:
    """The pace, as :func:`lorafusion.planner.stretch.pace` has it."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def cost(self) -> int:
        """Of the board as it is."""
        return pace(self._board.loads, self._board.limits.distance)

    def minimise(self, window: WindowModel) -> bool:
        """The peak of each run that touches the window, what it holds outside being fixed."""
        limits, loads, model = self._board.limits, self._board.loads, window.model
        most = limits.capacity + limits.place_load
        peaks: list[cp_model.IntVar] = []
        for run in range(window.places.start - limits.distance + 1, window.places.stop):
            places = range(max(0, run), min(len(loads), run + limits.distance))
            fixed = [loads[place] for place in places if place not in window.loads]
            peak = model.new_int_var(max(fixed, default=0), most, "")
            for place in places:
                if place in window.loads:
                    model.add(peak >= window.loads[place])
            model.add_hint(peak, max(loads[place] for place in places))
            peaks.append(peak)
        model.minimize(sum(peaks))
        return bool(window.parts)


class Lateness:
    """How far from a plan of ``goal`` places the board is.

    A sample is late where its job's chain, from its step on, would end behind the goal. What is
    minimised is load times the square of how far a place is behind a margin before that, so that
    windows in the middle clear the way for what is late at the end.
    """

    def __init__(self, board: Board, goal: int) -> None:
        self._board = board
        self._margin = 2 * board.limits.distance
        self._deadlines = [
            [goal - 1 - int(stay.entry.tail - stays[-1].entry.tail) for stay in stays]
            for stays in board.stays
        ]

    def late(self) -> int:
        """Load times places that it is late; 0 when the board fits into the goal."""
        return sum(
            max(0, self._behind(stay, place)) * stay.load(positions)
            for stay, place, positions in self._board.where()
        )

    def cost(self) -> int:
        """Of the board as it is."""
        return sum(
            self._weight(stay, place) * stay.load(positions)
            for stay, place, positions in self._board.where()
        )

    def minimise(self, window: WindowModel) -> bool:
        """The same over the samples in the window."""
        terms = [
            load * weight * count
            for part in window.parts
            for (load, place), count in part.counts.items()
            if (weight := self._weight(part.stay, place))
        ]
        window.model.minimize(sum(terms))
        return bool(terms)

    def _behind(self, stay: Stay, place: int) -> int:
        return place - self._deadlines[stay.job][stay.index]

    def _weight(self, stay: Stay, place: int) -> int:
        behind = self._behind(stay, place)
        return max(0, behind + self._margin) ** 2 + (LATE if behind > 0 else 0)
