"""How evenly a plan's microbatches take time."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean, pstdev

from lorafusion.planner.cost import CostModel, Counts
from lorafusion.planner.plan import Plan

__all__ = ["time_spread"]


def time_spread(plan: Plan, cost: CostModel, ranks: Mapping[str, int]) -> float:
    """Standard deviation over mean of the predicted times of the training microbatches.

    A microbatch's time is its forward and backward on the stage where it takes longest. Evals and
    no-ops are left out, and the last microbatch, which holds what was left over.

    Args:
        plan: Any plan.
        cost: Predicts the times.
        ranks: Job -> rank of its adapter.

    Returns:
        0 for fewer than two microbatches, or where none takes any time.

    Raises:
        PlanError: A job of the plan has no rank.
    """
    counts = [Counts.of(place, ranks) for place in plan.places if place.kind == "train"]
    seconds = [stage.seconds for stage in cost.stages]
    times = [max(stage(each) for stage in seconds) for each in counts[:-1]]
    mean = fmean(times) if times else 0.0
    return pstdev(times) / mean if mean else 0.0
