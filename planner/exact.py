"""Improve a plan with CP-SAT, window by window, off the critical path.

First *fewer places*: what stands behind the place where it would have to end in a plan of one place
less is late; windows are solved for the least lateness until nothing is late. Then *evenness* at
that number of places: windows are solved for the least pace, as :mod:`lorafusion.planner.balance`
does by single moves, but with all steps of a window at once.

All limits are in the solver's deterministic seconds, with one worker and a fixed seed: the same
draft and budget give the same plan on any machine that has the same version of OR-tools.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Protocol

from lorafusion.errors import PlanError
from lorafusion.planner.balance import balance, draft_loads, pace
from lorafusion.planner.board import Board, Stay
from lorafusion.planner.chain import Chain
from lorafusion.planner.draft import Draft, DraftPlace
from lorafusion.planner.plan import Limits
from lorafusion.planner.window_model import Moves, WindowModel

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

__all__ = ["improve", "worth_it"]

SIZES = (8, 12, 16)
"""Places of a window, small ones first: they settle most, and larger ones what is left. None is
shorter than S·D, or a run would stick out at both ends."""

LONGEST = 0.3
SHORTEST = 0.02
"""Deterministic seconds for one window."""

OVERHEAD = 0.01
"""The same for building a model, which the solver does not count."""

LARGEST = 6000
"""Counts in a model; of larger ones, nothing came within the seconds of a window."""

SHARE = 0.4
"""Of the budget, what fewer places may take."""


def improve(
    draft: Draft, chains: Sequence[Chain], limits: Limits, *, budget: float
) -> list[DraftPlace]:
    """The draft with fewer places, or as many and a lower pace, where that is found.

    Args:
        draft: A valid one.
        chains: What it was made from.
        limits: What it was made for.
        budget: Deterministic seconds in all.

    Raises:
        PlanError: OR-tools cannot be imported.
    """
    solver = _Solver()
    solver.left = budget * SHARE
    fewer = _fewer_places(draft, chains, limits, solver)
    solver.left += budget * (1 - SHARE)
    if len(fewer) < len(draft):
        fewer = balance(fewer, chains, limits, sweeps=24)
    return _evener(fewer, chains, limits, solver)


class _Solver:
    """CP-SAT, and how much it may still be used.

    Attributes:
        left: Deterministic seconds.
    """

    def __init__(self) -> None:
        try:
            from ortools.sat.python import cp_model
        except ImportError as error:
            raise PlanError(
                f"improving a plan needs OR-tools, which cannot be imported: {error}. Install it "
                "with `pip install ortools`, or plan without it (exact=0)."
            ) from error
        self._cp_model = cp_model
        self.left = 0.0

    def solve(self, window: WindowModel, limit: float) -> Moves | None:
        """The best that is found within ``limit`` deterministic seconds."""
        solver = self._cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = 0
        solver.parameters.max_deterministic_time = min(limit, self.left)
        status = solver.solve(window.model)
        self.left -= solver.response_proto.deterministic_time + OVERHEAD
        if status not in (self._cp_model.OPTIMAL, self._cp_model.FEASIBLE):
            return None
        return window.moves(solver.value)


class _Goal(Protocol):
    def minimise(self, window: WindowModel) -> bool:
        """Set the objective of a window; False where nothing can be gained in it."""
        ...

    def cost(self) -> int:
        """Of the whole board as it is."""
        ...


class _Sweeper:
    """Solves the windows of a board, one after another, for one goal."""

    def __init__(self, board: Board, goal: _Goal, solver: _Solver) -> None:
        self._board = board
        self._goal = goal
        self._solver = solver
        self._moves = 0
        self._changed = [0] * len(board.loads)  # the move that changed a place last
        self._tried: dict[range, int] = {}  # moves made when it was tried last

    def sweep(self, windows: Sequence[range], budget: float) -> bool:
        """Solve windows with an equal share of the budget each; whether any gained."""
        end = self._solver.left - budget
        moves = self._moves
        for index, places in enumerate(windows):
            left = self._solver.left - max(end, 0.0)
            if left <= 0:
                break
            share = 2 * left / (len(windows) - index)
            self._improve(places, min(LONGEST, max(SHORTEST, share)))
        return self._moves > moves

    def _improve(self, places: range, limit: float) -> None:
        distance = self._board.limits.distance
        near = self._changed[max(0, places.start - distance + 1) : places.stop + distance - 1]
        if max(near) <= self._tried.get(places, -1):
            return
        self._tried[places] = self._moves
        window = WindowModel(self._board, places)
        if not 0 < window.size <= LARGEST or not self._goal.minimise(window):
            return
        window.hint()
        moves = self._solver.solve(window, limit)
        if moves is None:
            return
        before, old = self._goal.cost(), [(stay, stay.at) for stay, _ in moves]
        self._board.put(*moves)
        if self._goal.cost() >= before:
            self._board.put(*old)
            return
        self._moves += 1
        for place in places:
            self._changed[place] = self._moves


class _Pace:
    def __init__(self, board: Board) -> None:
        self._board = board

    def cost(self) -> int:
        return pace(self._board.loads, self._board.limits.distance)

    def minimise(self, window: WindowModel) -> bool:
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
        return True


class _Lateness:
    """Load times how late it stands for a plan of ``goal`` places, squared.

    It counts from a margin before the last place on, so that windows in the middle of the plan
    clear the way for what is late at its end.
    """

    def __init__(self, board: Board, goal: int) -> None:
        self._board = board
        self._margin = 2 * board.limits.distance
        last = [stays[-1].entry.tail if stays else 0 for stays in board.stays]
        self._deadlines = [
            [goal - 1 - int(stay.entry.tail - last[stay.job]) for stay in stays]
            for stays in board.stays
        ]

    def _late(self, stay: Stay, place: int) -> int:
        return place - self._deadlines[stay.job][stay.index]

    def _weight(self, stay: Stay, place: int) -> int:
        late = self._late(stay, place)
        return max(0, late + self._margin) ** 2 + (1000 if late > 0 else 0)

    def cost(self) -> int:
        return sum(
            self._weight(stay, place) * stay.load(positions)
            for stay, place, positions in self._board.where()
        )

    @property
    def late(self) -> int:
        """Load times places that it is late."""
        return sum(
            max(0, self._late(stay, place)) * stay.load(positions)
            for stay, place, positions in self._board.where()
        )

    def minimise(self, window: WindowModel) -> bool:
        terms = [
            load * weight * number
            for part in window.parts
            for (load, place), number in part.counts.items()
            if (weight := self._weight(part.stay, place))
        ]
        window.model.minimize(sum(terms))
        return bool(terms)


def _windows(places: int, size: int, turn: int) -> list[range]:
    """The plan cut into windows of ``size``, each turn at other places."""
    start = -(size // 2 * (turn % 2) + size // 4 * (turn // 2 % 2))
    cut = (range(max(0, at), min(places, at + size)) for at in range(start, places, size))
    return [window for window in cut if len(window) > 1]


def _fewer_places(
    draft: Draft, chains: Sequence[Chain], limits: Limits, solver: _Solver
) -> list[DraftPlace]:
    """The draft with as many places fewer as are found to be too many."""
    best = list(draft)
    load = sum(draft_loads(draft, chains, limits))
    longest = max((int(chain.queue.ready_at + chain.length) for chain in chains), default=0)
    size = max(SIZES[-1], limits.distance)
    while len(best) > max(longest, -(-load // limits.capacity)):
        board = Board(best, chains, limits)
        lateness = _Lateness(board, len(best) - 1)
        sweeper = _Sweeper(board, lateness, solver)
        late = [lateness.late]
        while late[-1] and solver.left > 0 and not _stuck(late):
            windows = _windows(len(best), size, len(late))
            sweeper.sweep(windows[:: -1 if len(late) % 2 else 1], solver.left)
            late.append(lateness.late)
        if late[-1]:
            break
        best = board.draft()
        while not best[-1].taken:
            best.pop()
    return best


def _stuck(late: Sequence[int]) -> bool:
    """Whether the last two sweeps have gained little."""
    return len(late) > 2 and 10 * late[-1] > 9 * late[-3]


def _evener(
    draft: Draft, chains: Sequence[Chain], limits: Limits, solver: _Solver
) -> list[DraftPlace]:
    """The draft with as many places and a lower pace."""
    board = Board(draft, chains, limits)
    sweeper = _Sweeper(board, _Pace(board), solver)
    least, idle = max(0, limits.distance - SIZES[0]), 0
    for turn in count():
        if solver.left <= 0 or idle > 3:
            return board.draft()
        size = least + SIZES[min(turn // 2, len(SIZES) - 1)]
        sweeps = max(1, 2 * len(SIZES) - turn)
        gained = sweeper.sweep(_windows(len(draft), size, turn), solver.left / sweeps)
        idle = 0 if gained else idle + 1
    raise AssertionError


def worth_it(draft: Draft, chains: Sequence[Chain], limits: Limits) -> bool:
    return True
