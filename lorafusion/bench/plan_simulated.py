"""Simulated runs: jobs with measured loads, the cost of each stage, and how plans play."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from lorafusion.bench.plan_bases import base_shape
from lorafusion.planner.baselines import one_after_another
from lorafusion.planner.capacity import Hardware, search_capacity, typical_counts
from lorafusion.planner.cost import CostModel, Counts
from lorafusion.planner.default_cost import Setup, default_parts
from lorafusion.planner.devices import find_device
from lorafusion.planner.measure import Measure, measured
from lorafusion.planner.place_times import place_times
from lorafusion.planner.plan import Limits, Plan
from lorafusion.planner.queue import JobQueue
from lorafusion.planner.simulate import predict_bubble, simulate

__all__ = ["Played", "Run", "Stages", "alone", "make_run", "play"]

DEVICE = "h100"


@dataclass(frozen=True, slots=True)
class Stages:
    """What is simulated.

    Attributes:
        base: One of :data:`lorafusion.bench.plan_bases.CONFIGS`.
        count: Pipeline stages.
        capacity_tokens: A microbatch takes the time of so many tokens of the jobs' mix.
    """

    base: str
    count: int
    capacity_tokens: int


@dataclass(frozen=True, slots=True)
class Played:
    """What the simulator makes of a plan.

    Attributes:
        places: Microbatches and no-ops.
        noops: No-ops.
        bubble: Share of the time in which stages idle.
        bubble_without_ramp: The same while the pipeline is full.
        makespan_s: Predicted seconds.
        tokens_per_s: Tokens over them.
    """

    places: int
    noops: int
    bubble: float
    bubble_without_ramp: float
    makespan_s: float
    tokens_per_s: float

    @classmethod
    def in_turn(cls, parts: Sequence[Played]) -> Played:
        """Several runs, one behind the other."""
        makespan = sum(part.makespan_s for part in parts)

        def mean(name: str) -> float:
            return sum(getattr(part, name) * part.makespan_s for part in parts) / makespan

        return cls(
            places=sum(part.places for part in parts),
            noops=sum(part.noops for part in parts),
            bubble=mean("bubble"),
            bubble_without_ramp=mean("bubble_without_ramp"),
            makespan_s=makespan,
            tokens_per_s=mean("tokens_per_s"),
        )


@dataclass(frozen=True, slots=True)
class Run:
    """Jobs, and what they run on.

    Attributes:
        queues: The jobs, their loads measured.
        cost: The stages.
        measure: How loads are measured.
        typical: The run's mix, a microbatch of it.
        layers: Of each stage.
    """

    queues: tuple[JobQueue, ...]
    cost: CostModel
    measure: Measure
    typical: Counts
    layers: tuple[int, ...]

    @property
    def ranks(self) -> dict[str, int]:
        """Job -> rank of its adapter."""
        return {queue.name: queue.rank for queue in self.queues}

    def stage_seconds(self) -> list[float]:
        """What each stage takes for a typical microbatch."""
        return [stage.seconds(self.typical) for stage in self.cost.stages]


def make_run(queues: Sequence[JobQueue], on: Stages) -> Run:
    """Jobs on a base that is cut for their mix; loads by predicted time and memory.

    Raises:
        PlanError: The base does not fit into so many stages, or a sample into a microbatch.
    """
    cost, typical, layers = _stages(queues, on)
    capacity_s = max(stage.seconds(typical) for stage in cost.stages)
    memory_bytes = find_device(DEVICE).usable_bytes
    measure = Measure.of(cost, typical, capacity_s, memory_bytes=memory_bytes)
    return Run(tuple(measured(queue, measure) for queue in queues), cost, measure, typical, layers)


def play(run: Run, plan: Plan, flush_after: Collection[int] = ()) -> Played:
    """Simulate a plan of the run."""
    times = place_times(plan, run.cost, run.ranks)
    found = simulate(times, stages=len(run.cost.stages), flush_after=flush_after)
    return Played(
        places=len(plan.places),
        noops=sum(place.kind == "noop" for place in plan.places),
        bubble=found.bubble,
        bubble_without_ramp=found.bubble_without_ramp,
        makespan_s=found.makespan_s,
        tokens_per_s=sum(place.tokens for place in plan.places) / found.makespan_s,
    )


def alone(queue: JobQueue, on: Stages) -> tuple[Played, int]:
    """One job in a run of its own, with a flush after each batch, on a cut of its own.

    Returns:
        What it reaches at the capacity that is best for it, and that capacity in tokens.
    """
    cost, _, _ = _stages([queue], on)
    ranks = {queue.name: queue.rank}

    def plan(queues: Sequence[JobQueue], limits: Limits) -> Plan:
        # No-ops that take as long as the flushes: a plan alone says nothing of flushes.
        return one_after_another(queues, limits).unflushed()

    def seconds(made: Plan) -> float:
        return predict_bubble(place_times(made, cost, ranks), stages=on.count)[0]

    hardware = Hardware(memory_bytes=find_device(DEVICE).usable_bytes)
    choice = search_capacity([queue], cost, hardware, plan=plan, simulate=seconds)
    run = make_run([queue], replace(on, capacity_tokens=choice.best.tokens))
    made = one_after_another(run.queues, run.measure.limits())
    return play(run, made.plan, made.flush_after), choice.best.tokens


def _stages(queues: Sequence[JobQueue], on: Stages) -> tuple[CostModel, Counts, tuple[int, ...]]:
    """The stages, a typical microbatch, and the layers of each stage."""
    shape, device = base_shape(on.base), find_device(DEVICE)
    setup = Setup(ranks=tuple(queue.rank for queue in queues), recompute=True)
    mix = typical_counts(queues)
    typical = mix.scaled(on.capacity_tokens / mix.tokens)
    parts = default_parts(shape, device, setup)
    cut = parts.cut(typical, stages=on.count)
    return parts.model(cut), typical, tuple(map(len, cut))
