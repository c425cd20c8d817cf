"""What each place of a plan costs on each stage: what the simulator plays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lorafusion.errors import PlanError
from lorafusion.planner.cost import CostModel, Counts, StageCost
from lorafusion.planner.plan import Place, Plan

__all__ = ["PlaceTimes", "load_times", "place_times"]


@dataclass(frozen=True, slots=True)
class PlaceTimes:
    """Times and bytes of one place. The tuples have one entry per stage.

    Attributes:
        forward: Seconds (or loads) of its forward; zeros for a no-op.
        backward: The same of its backward; zeros for a no-op and for an eval.
        step: The same of the optimizer steps of the jobs whose step it completes.
        transfer_s: Seconds from the end on one stage until the next stage has the result; the
            stages work on meanwhile.
        held_bytes: Bytes that its forward keeps until its backward is done; none if empty.
        working_bytes: Bytes needed on top while it is being computed; none if empty.
        completes: Whether it completes a step; with several replicas the next step waits for it.
    """

    forward: tuple[float, ...]
    backward: tuple[float, ...]
    step: tuple[float, ...]
    transfer_s: float = 0.0
    held_bytes: tuple[float, ...] = ()
    working_bytes: tuple[float, ...] = ()
    completes: bool = False

    @classmethod
    def idle(cls, stages: int) -> PlaceTimes:
        """Those of a no-op."""
        none = (0.0,) * stages
        return cls(none, none, none)


def load_times(plan: Plan) -> list[PlaceTimes]:
    """Times without a cost model: forward = load, backward = 2 x load, on every stage.

    Steps and transfers take no time, and no bytes are held.
    """
    stages = plan.limits.stages
    none = (0.0,) * stages
    times: list[PlaceTimes] = []
    for place in plan.places:
        load = float(place.load(plan.limits))
        backward = (2 * load,) * stages if place.kind == "train" else none
        ends = _completes(place)
        times.append(PlaceTimes((load,) * stages, backward, none, completes=ends))
    return times


def place_times(plan: Plan, cost: CostModel, ranks: Mapping[str, int]) -> list[PlaceTimes]:
    """Times and bytes that ``cost`` predicts.

    An eval holds no more for its short life than a training microbatch of its size would.

    Args:
        plan: The plan.
        cost: Predicts a microbatch, stage by stage; as many stages as the plan has.
        ranks: The rank of each job's adapter, by the job's name.

    Raises:
        PlanError: The plan and the cost model have different numbers of stages, or a job has no
            rank.
    """
    if len(cost.stages) != plan.limits.stages:
        raise PlanError(
            f"the cost model has {len(cost.stages)} stages, and the plan {plan.limits.stages}; "
            "they must be equal. Make the cost model for the plan's number of stages."
        )
    idle = PlaceTimes.idle(plan.limits.stages)
    return [
        idle if place.kind == "noop" else _predicted(place, cost, ranks) for place in plan.places
    ]


def _predicted(place: Place, cost: CostModel, ranks: Mapping[str, int]) -> PlaceTimes:
    counts = Counts.of(place, ranks)
    trains = place.kind == "train"
    ending = [ranks[job] for job, _ in place.completes] if trains else []
    return PlaceTimes(
        forward=tuple(stage.forward(counts) for stage in cost.stages),
        backward=tuple(stage.backward(counts) if trains else 0.0 for stage in cost.stages),
        step=tuple(sum(_step_s(stage, rank) for rank in ending) for stage in cost.stages),
        transfer_s=cost.transfer(counts),
        held_bytes=tuple(stage.activation(counts) for stage in cost.stages),
        working_bytes=tuple(stage.working(counts) for stage in cost.stages),
        completes=_completes(place),
    )


def _step_s(stage: StageCost, rank: int) -> float:
    """Seconds of one job's optimizer step on a stage."""
    return stage.step_fixed_s + stage.step_rank_s * rank


def _completes(place: Place) -> bool:
    return place.kind == "train" and bool(place.completes)
