"""Improve a plan with CP-SAT, window by window, off the critical path.

First *fewer places*: what stands behind the place where it would have to end in a plan of one place
less is late; windows are solved for the least lateness until nothing is late. A plan that is slower
for it is dropped: one place less cost real_batch_of_one_s4 13% of its predicted time. Then
*evenness* at that number of places: windows are solved for the least pace, as
:mod:`lorafusion.planner.balance` does by single moves, but with all steps of a window at once.

All limits are in the solver's deterministic seconds, with one worker and a fixed seed: the same
draft and budget give the same plan on any machine that has the same version of OR-tools.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from lorafusion.errors import PlanError
from lorafusion.planner.balance import balance, draft_loads
from lorafusion.planner.board import Board
from lorafusion.planner.chain import Chain
from lorafusion.planner.draft import Draft, DraftPlace
from lorafusion.planner.plan import Limits
from lorafusion.planner.stretch import pace
from lorafusion.planner.window_goals import Goal, Lateness, Pace
from lorafusion.planner.window_model import Moves, WindowModel

__all__ = ["improve", "worth_it"]

MOST_PLACES = 400
"""Of a longer plan too few windows are reached within a budget of seconds."""

IDLE = 0.1
"""Idle share of the pipeline from which on there is something to gain."""

SIZES = (8, 12, 16)
"""Places of a window, small ones first: they settle most, and larger ones what is left. None is
shorter than S·D, or a run would stick out at both ends."""

LONGEST = 0.3
LATE_LONGEST = 0.1
SHORTEST = 0.02
"""Deterministic seconds for one window."""

OVERHEAD = 0.01
"""The same for building a model, which the solver does not count."""

LARGEST = 6000
"""Counts in a model; of larger ones, nothing came within the seconds of a window."""

SHARE = 0.3
"""Of the budget, what fewer places may take."""


def improve(
    draft: Draft, chains: Sequence[Chain], limits: Limits, *, budget: float
) -> list[DraftPlace]:
    """The draft with fewer places or a lower pace and neither of them higher, where that is found.

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
        before, after = (
            pace(draft_loads(found, chains, limits), limits.distance) for found in (draft, fewer)
        )
        fewer = fewer if after <= before else list(draft)
    # At a distance of 1 the pace is the load, which no move changes.
    return _evener(fewer, chains, limits, solver) if limits.distance > 1 else fewer


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


class _Sweeper:
    """Solves the windows of a board, one after another, for one goal."""

    def __init__(self, board: Board, goal: Goal, solver: _Solver, longest: float) -> None:
        self._board = board
        self._goal = goal
        self._solver = solver
        self._longest = longest
        self._moves = 0
        self._changed = [0] * len(board.loads)  # the move that changed a place last
        self._tried: dict[range, int] = {}  # moves made when it was tried last

    def sweep(self, windows: Sequence[range], budget: float) -> bool:
        """Solve windows within ``budget`` deterministic seconds; whether any gained."""
        end, moves = self._solver.left - budget, self._moves
        for index, places in enumerate(windows):
            left = self._solver.left - end
            if left <= 0:
                break
            # Twice an equal share, as many windows take much less.
            share = 2 * left / (len(windows) - index)
            self._improve(places, max(SHORTEST, min(self._longest, share)))
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
    while len(best) > _least_places(chains, limits) and best[-1].kind != "eval":
        board = Board(best, chains, limits)
        lateness = Lateness(board, len(best) - 1)
        sweeper = _Sweeper(board, lateness, solver, LATE_LONGEST)
        size = max(SIZES[-1], limits.distance)
        late = [lateness.late()]
        while late[-1] and solver.left > 0 and not _stuck(late):
            windows = _windows(len(best), size, len(late))
            # Backwards first: the end is where plans lose places.
            sweeper.sweep(windows[:: -1 if len(late) % 2 else 1], solver.left)
            late.append(lateness.late())
        if late[-1]:
            break
        best = board.draft()
        while not best[-1].taken:
            best.pop()
    return best


def _least_places(chains: Sequence[Chain], limits: Limits) -> int:
    """By load, and by the longest chain."""
    load = sum(entry.load for chain in chains for entry in chain.entries)
    longest = max((int(chain.queue.ready_at + chain.length) for chain in chains), default=0)
    return max(longest, -(-load // limits.capacity))


def _stuck(late: Sequence[int]) -> bool:
    """Whether the last two sweeps have gained little."""
    return len(late) > 2 and 10 * late[-1] > 9 * late[-3]


def _evener(
    draft: Draft, chains: Sequence[Chain], limits: Limits, solver: _Solver
) -> list[DraftPlace]:
    """The draft with as many places and a lower pace."""
    board = Board(draft, chains, limits)
    sweeper = _Sweeper(board, Pace(board), solver, LONGEST)
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
    """Whether the solver is likely to gain something worth its time.

    It is where more than a tenth of the pipeline idles, because chains of steps bound the plan and
    not load: with a budget of 1, real_demo_s4 went from 17.9% to 16.4% and two_jobs from 37.0% to
    35.9%; lognormal_1, whose places are full, from 4.3% to 4.2%.
    """
    if limits.distance == 1 or len(draft) > MOST_PLACES:
        return False
    loads = draft_loads(draft, chains, limits)
    return sum(loads) < (1 - IDLE) * pace(loads, limits.distance)
