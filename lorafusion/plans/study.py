"""Plan a run without training it: cut, capacity, plan, simulation, and what others would take.

Nothing here needs the base's weights: its config and the jobs' samples are enough.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from lorafusion.errors import PlanError
from lorafusion.planner.baselines import (
    Baseline,
    lorafusion_greedy,
    mlora,
    one_after_another,
)
from lorafusion.planner.capacity import Choice, Hardware, search_capacity, typical_counts
from lorafusion.planner.cost import CostModel, Counts
from lorafusion.planner.default_cost import Setup, default_parts
from lorafusion.planner.devices import DeviceProfile
from lorafusion.planner.estimate import StageMemory, estimate_memory
from lorafusion.planner.machines import Machines, with_reduction
from lorafusion.planner.measure import measured
from lorafusion.planner.parts import PartCosts
from lorafusion.planner.place_times import place_times
from lorafusion.planner.plan import Limits, Plan
from lorafusion.planner.queue import JobQueue
from lorafusion.planner.replicas import Sharing, share_replicas
from lorafusion.planner.search import plan_run
from lorafusion.planner.shape import ModelShape
from lorafusion.planner.simulate import Simulation, predict_bubble, simulate
from lorafusion.planner.verify import verify_plan

__all__ = ["Schedule", "Study", "Wish", "study"]

TRIAL_EFFORT = 4000
"""Samples placed for one trial of a capacity: about 0.05 s, of which there are a dozen."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a run is to be planned for.

    Attributes:
        device: What each stage runs on.
        stages: Pipeline stages S.
        replicas: Replicas D.
        capacity_tokens: Tokens of the run's mix that a microbatch may hold; None: searched.
        recompute: Whether each layer's forward is repeated in the backward.
        targets: The linears that have adapters.
        compare: Whether other schedules are simulated beside.
        exact_s: Deterministic seconds of CP-SAT, where it is likely to gain something; 0 for none.
            One takes 2 to 5 seconds.
        machines: The nodes that all stages of all replicas stand on; None: one, whose replicas'
            reductions take no time.
        measured: What the base's parts cost, where that was measured; None: as a default has it.
    """

    device: DeviceProfile
    stages: int = 1
    replicas: int = 1
    capacity_tokens: int | None = None
    recompute: bool = False
    targets: tuple[str, ...] | str = "all-linear"
    compare: bool = True
    exact_s: float = 0.2
    machines: Machines | None = None
    measured: PartCosts | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """One way to order the training samples, on the same stages and at the same capacity.

    Attributes:
        name: What it is.
        microbatches: Places that hold samples.
        noops: Places that hold none.
        makespan_s: Simulated seconds.
        bubble: Idle share of them.
    """

    name: str
    microbatches: int
    noops: int
    makespan_s: float
    bubble: float


@dataclass(frozen=True, slots=True)
class Study:
    """What a run would be like.

    Attributes:
        cut: The layers of each stage.
        cost: Predicts time and memory of a stage.
        choice: The capacity, and what else was tried.
        plan: All places.
        ranks: Job -> rank of its adapter.
        simulation: Of the plan.
        memory: Of each stage by kind, with all microbatches in flight like the plan's fullest.
        schedules: Of the training samples alone: ours, then others'. Empty where not asked for.
        sharing: How a run would share the jobs among replicas, which the plan splits all over all;
            None: there is one.
    """

    cut: tuple[range, ...]
    cost: CostModel
    choice: Choice
    plan: Plan
    ranks: Mapping[str, int]
    simulation: Simulation
    memory: tuple[StageMemory, ...]
    schedules: tuple[Schedule, ...]
    sharing: Sharing | None = None


def study(
    queues: Sequence[JobQueue],
    shape: ModelShape,
    wish: Wish,
    *,
    status: Callable[[str], None] = lambda _: None,
) -> Study:
    """Plan and simulate a run.

    Args:
        queues: All of each job.
        shape: The base.
        wish: What it is planned for.
        status: Told what is being done.

    Raises:
        PlanError: More stages than layers, too little memory, a sample that fits no microbatch.
    """
    ranks = {queue.name: queue.rank for queue in queues}
    typical = typical_counts(queues)
    across = wish.machines is not None and wish.machines.hops_across(wish.stages)
    setup = Setup(wish.targets, tuple(ranks.values()), wish.recompute, across)
    parts = _parts(shape, setup, wish)
    cut = parts.cut(typical, stages=wish.stages)
    cost = parts.model(cut)
    if wish.machines is not None:
        columns = sum(linear.inputs + linear.outputs for linear in setup.adapted(shape))
        cost = with_reduction(cost, cut, wish.machines, columns=columns)
    hardware = Hardware(wish.device.usable_bytes, wish.replicas)
    play = partial(_play, cost, ranks, wish)
    status("searching the capacity")
    choice = search_capacity(
        queues,
        cost,
        hardware,
        plan=partial(plan_run, effort=TRIAL_EFFORT),
        simulate=lambda plan: play(plan, ())[0],
        tokens=() if wish.capacity_tokens is None else (wish.capacity_tokens,),
    )
    loaded = [measured(queue, choice.measure) for queue in queues]
    limits = choice.measure.limits(wish.replicas)
    status("planning")
    plan = plan_run(loaded, limits, exact=wish.exact_s)
    verify_plan(plan, loaded)
    status("simulating")
    simulation = simulate(
        place_times(plan, cost, ranks),
        stages=wish.stages,
        replicas=wish.replicas,
        static_bytes=[stage.static_bytes for stage in cost.stages],
    )
    schedules = _schedules(loaded, limits, play) if wish.compare else ()
    sharing = None
    if wish.replicas > 1:
        status("comparing with jobs spread over the replicas")
        machines = wish.machines or Machines(wish.device, 1, wish.stages * wish.replicas)
        columns = sum(linear.inputs + linear.outputs for linear in setup.adapted(shape))
        added = cost if wish.machines else with_reduction(cost, cut, machines, columns=columns)
        sharing = share_replicas(loaded, limits, added)
    memory = estimate_memory(shape, wish.device, setup, cost, cut, _fullest(plan, cost, ranks))
    return Study(cut, cost, choice, plan, ranks, simulation, memory, schedules, sharing)


def _parts(shape: ModelShape, setup: Setup, wish: Wish) -> PartCosts:
    if wish.measured is None:
        return default_parts(shape, wish.device, setup)
    if wish.measured.layers != shape.layers:
        raise PlanError(
            f"the measured costs are of {wish.measured.layers} layers, and the base has "
            f"{shape.layers}. Measure this base with `lorafusion profile FILE`."
        )
    row_bytes = shape.dtype_bytes * shape.hidden
    return wish.measured.recomputed(row_bytes) if wish.recompute else wish.measured


def _fullest(plan: Plan, cost: CostModel, ranks: Mapping[str, int]) -> Counts:
    """The microbatch that the first stage keeps most for."""
    counts = (Counts.of(place, ranks) for place in plan.places)
    return max(counts, key=cost.stages[0].activation)


def _play(
    cost: CostModel, ranks: Mapping[str, int], wish: Wish, plan: Plan, flushes: Collection[int]
) -> tuple[float, float]:
    """Seconds and bubble of a plan."""
    times = place_times(plan, cost, ranks)
    return predict_bubble(times, stages=wish.stages, replicas=wish.replicas, flush_after=flushes)


def _schedules(
    queues: Sequence[JobQueue],
    limits: Limits,
    play: Callable[[Plan, Collection[int]], tuple[float, float]],
) -> tuple[Schedule, ...]:
    """Ours and others' schedules of the training samples; others have no way to hold evals."""
    training = [replace(queue, evals={}) for queue in queues if queue.batches]
    made: list[tuple[str, Baseline]] = [
        ("this planner", Baseline(plan_run(training, limits))),
        ("LoRAFusion's greedy planner", lorafusion_greedy(training, limits)),
        ("one job per microbatch, no flush (mLoRA)", mlora(training, limits)),
        ("one job after another, a flush per batch", one_after_another(training, limits)),
    ]
    schedules: list[Schedule] = []
    for name, baseline in made:
        seconds, bubble = play(baseline.plan, baseline.flush_after)
        noops = sum(place.kind == "noop" for place in baseline.plan.places)
        microbatches = len(baseline.plan.places) - noops
        schedules.append(Schedule(name, microbatches, noops, seconds, bubble))
    return tuple(schedules)
