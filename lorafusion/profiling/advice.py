"""What to run with, by simulation with measured costs: capacity, stages, recomputation, company."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from lorafusion.errors import PlanError
from lorafusion.planner.capacity import Choice, Hardware, Trial, search_capacity, typical_counts
from lorafusion.planner.cost import CostModel
from lorafusion.planner.measure import Measure, measured
from lorafusion.planner.memory import memory_limit
from lorafusion.planner.parts import PartCosts
from lorafusion.planner.place_times import place_times
from lorafusion.planner.plan import Plan
from lorafusion.planner.queue import JobQueue
from lorafusion.planner.search import plan_run
from lorafusion.planner.simulate import predict_bubble

__all__ = ["Advice", "Option", "advise"]

# Samples placed for one trial of a capacity: about 0.05 s, of which there are a dozen a stage.
_EFFORT = 4000
# A larger capacity takes memory, and has to gain something for it: this share at least, and what
# the costs are off by. In two studies of SmolLM2 (errors of 7.2% and 4.4%) 2,806 and 4,123 tokens
# were predicted to be 4 and 7% faster than 1,280, and were 8% slower.
_LEAST_GAIN = 0.01
# Below this the jobs are as well run one after another, which holds fewer adapters at once.
_GAIN = 1.02


@dataclass(frozen=True, slots=True)
class Option:
    """The best of one way to run.

    Attributes:
        stages: Pipeline stages.
        recompute: Whether each layer's forward is repeated in the backward.
        capacity: Tokens of the run's mix; 0 where it cannot be run.
        tokens_per_s: Predicted.
        bubble: Predicted idle share.
        trials: Capacity -> predicted tokens per second.
        refused: Why it cannot be run.
        cut: The layers of each stage.
    """

    stages: int
    recompute: bool
    capacity: int = 0
    tokens_per_s: float = 0.0
    bubble: float = 0.0
    trials: Mapping[int, float] | None = None
    refused: str = ""
    cut: tuple[range, ...] = ()


@dataclass(frozen=True, slots=True)
class Advice:
    """What to run with.

    Attributes:
        best: The way of the highest predicted throughput.
        options: All that were tried, ``best`` among them.
        over_alone: Predicted speed of all jobs together over each planned by itself, one after
            another.
        alone: Jobs that the planner lets share no microbatch, because that would gain them nothing.
    """

    best: Option
    options: tuple[Option, ...]
    over_alone: float
    alone: tuple[str, ...]

    @property
    def company_pays(self) -> bool:
        """Whether running together gains at least 2%."""
        return self.over_alone >= _GAIN


@dataclass(frozen=True, slots=True)
class _Search:
    """Which capacities are tried, and how near the best one has to come."""

    capacity: int | None
    near: float


@dataclass(frozen=True, slots=True)
class _Tried:
    option: Option
    cost: CostModel
    measure: Measure


def advise(
    queues: Sequence[JobQueue],
    ways: Mapping[int, PartCosts],
    *,
    row_bytes: float,
    memory_bytes: Mapping[int, float],
    capacity: int | None = None,
    error: float = 0.0,
) -> Advice:
    """Search the capacity for each number of stages, with recomputation where memory asks for it.

    Args:
        queues: All of each job.
        ways: Stages -> measured costs with the threads that each stage then has.
        row_bytes: Of a token's hidden state.
        memory_bytes: Stages -> what each may use.
        capacity: Tokens of the run's mix; None: searched.
        error: Share that the costs are off by; of the capacities whose speeds differ by no more
            than that the smallest is taken.

    Raises:
        PlanError: Nothing can be run: the reason of the first, and what would fit.
    """
    ranks = {queue.name: queue.rank for queue in queues}
    search = _Search(capacity, near=1 - max(_LEAST_GAIN, error))
    tried: list[_Tried] = []
    options: list[Option] = []
    for stages, parts in ways.items():
        for recompute in (False, True):
            chosen = parts.recomputed(row_bytes) if recompute else parts
            try:
                found = _try(queues, chosen, stages, memory_bytes[stages], search)
            except PlanError as reason:
                options.append(Option(stages, recompute, refused=str(reason)))
                continue
            tried.append(replace(found, option=replace(found.option, recompute=recompute)))
            options.append(tried[-1].option)
    if not tried:
        first = min(ways)
        parts = ways[first].recomputed(row_bytes)
        raise _what_would_fit(queues, parts, memory_bytes[first], options[0].refused)
    best = max(tried, key=lambda one: one.option.tokens_per_s)
    over, alone = _company(queues, best, ranks)
    return Advice(best.option, tuple(options), over, alone)


def _try(
    queues: Sequence[JobQueue],
    parts: PartCosts,
    stages: int,
    memory_bytes: float,
    search: _Search,
) -> _Tried:
    typical = typical_counts(queues)
    cut = parts.cut(typical, stages=stages)
    cost = parts.model(cut)
    ranks = {queue.name: queue.rank for queue in queues}
    choice = search_capacity(
        queues,
        cost,
        Hardware(memory_bytes),
        plan=partial(plan_run, effort=_EFFORT),
        simulate=lambda plan: _play(plan, cost, ranks)[0],
        tokens=() if search.capacity is None else (search.capacity,),
    )
    trial = _smallest_near_best(choice, search.near)
    measure = Measure.of(cost, typical, trial.capacity_s, memory_bytes=memory_bytes)
    plan = plan_run([measured(queue, measure) for queue in queues], measure.limits())
    seconds, bubble = _play(plan, cost, ranks)
    option = Option(
        stages,
        recompute=False,
        capacity=trial.tokens,
        tokens_per_s=sum(place.tokens for place in plan.places) / seconds,
        bubble=bubble,
        trials={one.tokens: one.tokens_per_s for one in choice.trials if not one.refused},
        cut=cut,
    )
    return _Tried(option, cost, measure)


def _smallest_near_best(choice: Choice, near: float) -> Trial:
    enough = near * choice.best.tokens_per_s
    return next(one for one in choice.trials if one.tokens_per_s >= enough)


def _company(
    queues: Sequence[JobQueue], best: _Tried, ranks: Mapping[str, int]
) -> tuple[float, tuple[str, ...]]:
    """Speed together over one after another, and who shares no microbatch."""
    loaded = [replace(measured(queue, best.measure), evals={}) for queue in queues if queue.batches]
    limits = best.measure.limits()
    together = plan_run(loaded, limits)
    apart = [plan_run([queue], limits) for queue in loaded]
    theirs = sum(_play(plan, best.cost, ranks)[0] for plan in apart)
    return theirs / _play(together, best.cost, ranks)[0], together.alone


def _what_would_fit(
    queues: Sequence[JobQueue], parts: PartCosts, memory_bytes: float, reason: str
) -> PlanError:
    """Why nothing can be run, and the fewest stages of so much memory that could."""
    typical = typical_counts(queues)
    for stages in range(1, parts.layers + 1):
        cost = parts.model(parts.cut(typical, stages=stages))
        try:
            most = [limit for limit in memory_limit(cost, typical, memory_bytes) if limit]
        except PlanError:
            continue
        longest = max(max(b.lengths) for queue in queues for b in queue.batches)
        if most and min(most) >= longest:
            return PlanError(
                f"{reason} What would fit: {stages} stages of {memory_bytes / 1e9:.2f} GB each, "
                f"with recomputation, and microbatches of up to {min(most):,} tokens."
            )
    return PlanError(
        f"{reason} Not even {parts.layers} stages of {memory_bytes / 1e9:.2f} GB would do."
    )


def _play(plan: Plan, cost: CostModel, ranks: Mapping[str, int]) -> tuple[float, float]:
    return predict_bubble(place_times(plan, cost, ranks), stages=len(cost.stages))
