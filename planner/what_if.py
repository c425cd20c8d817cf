"""Which cut into stages and replicas would be fastest on given machines: predicted, not trained.

Every number of stages that uses all devices is tried, with and without recomputation; for each the
capacity is searched on a beginning of the run, planned and simulated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from lorafusion.errors import PlanError
from lorafusion.planner.capacity import (
    Choice,
    Hardware,
    candidates,
    search_capacity,
    typical_counts,
)
from lorafusion.planner.cost import CostModel
from lorafusion.planner.default_cost import Setup, default_parts
from lorafusion.planner.estimate import StageMemory, estimate_memory
from lorafusion.planner.machines import Machines, with_reduction
from lorafusion.planner.place_times import place_times
from lorafusion.planner.plan import Plan
from lorafusion.planner.queue import JobQueue
from lorafusion.planner.search import plan_run
from lorafusion.planner.shape import ModelShape
from lorafusion.planner.simulate import predict_bubble

__all__ = ["Candidate", "Layout", "best_of", "search_layouts", "try_layout"]

TRIALS = 4
"""Capacities tried for each layout."""
EFFORT = 1500
"""Samples placed in a trial's plan."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to use the machines.

    Attributes:
        stages: Pipeline stages S.
        replicas: Replicas D.
        recompute: Whether each layer's forward is repeated in the backward.
    """

    stages: int
    replicas: int
    recompute: bool


@dataclass(frozen=True, slots=True)
class Candidate:
    """What becomes of a layout.

    Attributes:
        layout: It.
        refused: Why it cannot be used; empty where it can. The rest then says nothing.
        capacity_tokens: Of a microbatch, tokens of the run's mix.
        tokens_per_s: On all devices together.
        bubble: Idle share, with filling and draining.
        job_step_s: Job -> seconds from one of its steps to its next, on average.
        roomy: Whether a larger capacity would fit, and is slower.
        memory: Of each stage, at the capacity.
        reduction_s: Job -> seconds of a step in which replicas add up gradients, of the slowest
            stage.
    """

    layout: Layout
    refused: str = ""
    capacity_tokens: int = 0
    tokens_per_s: float = 0.0
    bubble: float = 0.0
    job_step_s: tuple[tuple[str, float], ...] = ()
    roomy: bool = False
    memory: tuple[StageMemory, ...] = ()
    reduction_s: tuple[tuple[str, float], ...] = ()

    @property
    def fullest(self) -> float:
        """Bytes of the fullest stage."""
        return max((stage.total for stage in self.memory), default=0.0)


def search_layouts(
    queues: Sequence[JobQueue],
    shape: ModelShape,
    machines: Machines,
    recompute: Sequence[bool] = (False, True),
    targets: tuple[str, ...] | str = "all-linear",
    capacity_tokens: int | None = None,
) -> Iterator[Candidate]:
    """Every number of stages that uses all devices, as it is found.

    With recomputation as well, unless there is room without.

    Args:
        queues: All of each job.
        shape: The base.
        machines: What it would run on.
        recompute: What to try.
        targets: The linears that have adapters.
        capacity_tokens: Of a microbatch; searched if None.
    """
    for stages in machines.stage_counts(shape.layers):
        for again in recompute:
            layout = Layout(stages, machines.count // stages, again)
            found = try_layout(queues, shape, machines, layout, targets, capacity_tokens)
            yield found
            if found.roomy:
                break


def best_of(found: Sequence[Candidate]) -> Candidate:
    """The one of the most tokens per second.

    Raises:
        PlanError: None can be used: the reason of the one with the most stages.
    """
    usable = [candidate for candidate in found if not candidate.refused]
    if not usable:
        last = found[-1]
        raise PlanError(
            f"no number of stages can be used; with {last.layout.stages}: {last.refused} Give more "
            "or larger devices, or a dtype of fewer bytes."
        )
    return max(usable, key=lambda candidate: candidate.tokens_per_s)


def try_layout(
    queues: Sequence[JobQueue],
    shape: ModelShape,
    machines: Machines,
    layout: Layout,
    targets: tuple[str, ...] | str = "all-linear",
    capacity_tokens: int | None = None,
) -> Candidate:
    """Plan and simulate a beginning of the run at several capacities; the fastest counts."""
    typical = typical_counts(queues)
    ranks = {queue.name: queue.rank for queue in queues}
    setup = Setup(
        targets, tuple(ranks.values()), layout.recompute, machines.hops_across(layout.stages)
    )
    parts = default_parts(shape, machines.device, setup)
    cut = parts.cut(typical, stages=layout.stages)
    alone = parts.model(cut)
    columns = sum(linear.inputs + linear.outputs for linear in setup.adapted(shape))
    cost = with_reduction(alone, cut, machines, columns=columns)
    hardware = Hardware(machines.device.usable_bytes, layout.replicas)
    played: dict[float, tuple[Plan, float]] = {}

    def seconds(plan: Plan) -> float:
        times = place_times(plan, cost, ranks)
        makespan, bubble = predict_bubble(times, stages=layout.stages, replicas=layout.replicas)
        played[makespan] = plan, bubble
        return makespan

    try:
        tokens = candidates(queues, cost, hardware, TRIALS)
        if capacity_tokens is not None:
            tokens = (capacity_tokens,)
        choice = search_capacity(
            queues,
            cost,
            hardware,
            plan=partial(plan_run, effort=EFFORT),
            simulate=seconds,
            tokens=tokens,
        )
    except PlanError as error:
        return Candidate(layout, refused=str(error))
    plan, bubble = played[choice.best.makespan_s]
    full = typical.scaled(choice.best.tokens / typical.tokens)
    return Candidate(
        layout,
        capacity_tokens=choice.best.tokens,
        tokens_per_s=choice.best.tokens_per_s,
        bubble=bubble,
        job_step_s=tuple(_step_seconds(plan, choice)),
        roomy=choice.best is not choice.trials[-1] and not choice.trials[-1].refused,
        memory=estimate_memory(shape, machines.device, setup, alone, cut, full),
        reduction_s=tuple((queue.name, _reduction(cost, alone, queue.rank)) for queue in queues),
    )


def _reduction(cost: CostModel, alone: CostModel, rank: int) -> float:
    """Seconds that a step of a rank takes longer with replicas than alone, on the worst stage."""
    return max(
        ours.step_fixed_s - one.step_fixed_s + rank * (ours.step_rank_s - one.step_rank_s)
        for ours, one in zip(cost.stages, alone.stages, strict=True)
    )


def _step_seconds(plan: Plan, choice: Choice) -> Iterator[tuple[str, float]]:
    """Each job's share of the makespan, by the places from its first to its last, over its steps.

    Places take about as long as each other: that is what they are filled for.
    """
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    steps: dict[str, int] = {}
    for index, place in enumerate(plan.places):
        for segment in place.segments if place.kind == "train" else ():
            first.setdefault(segment.job, index)
            last[segment.job] = index
        for job, _ in place.completes if place.kind == "train" else ():
            steps[job] = steps.get(job, 0) + 1
    place_s = choice.best.makespan_s / len(plan.places)
    for job, count in steps.items():
        yield job, place_s * (last[job] + 1 - first[job]) / count
