"""Improve a plan with CP-SAT, window by window, off the critical path.

First *fewer places*: windows from the end of the plan to its beginning, as the end is where plans
lose places. Where the samples of a window fit into one place less, what stands behind moves up.
Then *evenness* at that number of places: in windows that overlap, the pace is minimised, as
:mod:`lorafusion.planner.balance` does by single moves, but with all steps of a window at once.

All limits are in the solver's deterministic seconds, with one worker and a fixed seed: the same
draft and budget give the same plan on any machine that has the same version of OR-tools.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from lorafusion.errors import PlanError
from lorafusion.planner.balance import balance, draft_loads
from lorafusion.planner.board import Board, to_draft
from lorafusion.planner.chain import Chain
from lorafusion.planner.draft import Draft, DraftPlace
from lorafusion.planner.plan import Limits
from lorafusion.planner.stretch import pace
from lorafusion.planner.window_model import Moves, Window, WindowModel

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

__all__ = ["improve", "worth_it"]


def improve(
    draft: Draft, chains: Sequence[Chain], limits: Limits, *, budget: float
) -> list[DraftPlace]:
    """The draft with fewer places, or as many and a lower pace, where that is found.

    Args:
        draft: A valid one.
        chains: What it was made from.
        limits: What it was made for.
        budget: Deterministic seconds in all. On one core of 2025's servers a deterministic second
            takes 2 to 5 seconds.

    Raises:
        PlanError: OR-tools cannot be imported.
    """
    solver = _Solver(budget)
