"""Search the capacity: plan and simulate a sample of the run at several, and take the fastest.

A large capacity wastes less on launches and half-empty tiles, but leaves fewer microbatches between
two steps of a job, so that places stay empty; and memory ends it. Where the best one lies depends
on stages, batch sizes and lengths together, hence the simulation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lorafusion.errors import PlanError
from lorafusion.planner.cost import CostModel, Counts, Linear
from lorafusion.planner.measure import UNITS, Measure, measured
from lorafusion.planner.memory import memory_limit
from lorafusion.planner.plan import Limits, Plan
from lorafusion.planner.queue import JobQueue

__all__ = [
    "Choice",
    "Hardware",
    "Trial",
    "candidates",
    "sample_run",
    "search_capacity",
    "typical_counts",
]

# Places of the sample at the largest candidate, for each stage and replica: filling and draining
# the pipeline is then at most 2% of the simulated time, as it is less in a long run.
_PLACES = 50
_CANDIDATES = 12


@dataclass(frozen=True, slots=True)
class Hardware:
    """What the stages run on.

    Attributes:
        memory_bytes: What the run may use of each stage's device; None: memory is not looked at.
        replicas: Replicas D.
    """

    memory_bytes: float | None = None
    replicas: int = 1


@dataclass(frozen=True, slots=True)
class Trial:
    """What one capacity would give.

    Attributes:
        tokens: The capacity, as tokens of the run's mix.
        capacity_s: The same in predicted seconds on the slowest stage.
        places: Places of the sample's plan.
        makespan_s: Its simulated seconds.
        tokens_per_s: Tokens planned per simulated second; 0 where refused.
        refused: Why it cannot be used; empty where it can.
    """

    tokens: int
    capacity_s: float
    places: int = 0
    makespan_s: float = math.inf
    tokens_per_s: float = 0.0
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """The capacity to plan with, and what else was tried.

    Attributes:
        best: The trial that won.
        measure: Gives samples their loads, and the limits.
        trials: All, from the smallest capacity.
    """

    best: Trial
    measure: Measure
    trials: tuple[Trial, ...]


def search_capacity(
    queues: Sequence[JobQueue],
    cost: CostModel,
    hardware: Hardware,
    *,
    plan: Callable[[Sequence[JobQueue], Limits], Plan],
    simulate: Callable[[Plan], float],
    tokens: Sequence[int] = (),
) -> Choice:
    """The capacity of the highest predicted throughput, the smallest of equals.

    Args:
        queues: The whole run, unplanned. Their loads are not looked at.
        cost: Predicts time and memory of each stage.
        hardware: Memory and replicas.
        plan: Plans queues whose loads are measured.
        simulate: Seconds that a plan takes.
        tokens: Capacities to try, as tokens of the run's mix; those of :func:`candidates` where
            none are given.

    Raises:
        PlanError: No training samples, or no candidate can be used: the reason of the largest.
    """
    typical = typical_counts(queues)
    tokens = sorted(tokens or candidates(queues, cost, hardware))
    sample = sample_run(queues, tokens[-1] * _PLACES * len(cost.stages) * hardware.replicas)

    def attempt(count: int) -> tuple[Trial, Measure | None]:
        capacity_s = _seconds(cost, typical, count)
        try:
            measure = Measure.of(cost, typical, capacity_s, memory_bytes=hardware.memory_bytes)
            loaded = [measured(queue, measure) for queue in sample]
            made = plan(loaded, measure.limits(hardware.replicas))
        except PlanError as error:
            return Trial(count, capacity_s, refused=str(error)), None
        makespan = simulate(made)
        assert makespan > 0, "the slowest stage takes time, but its microbatches none"
        rate = sum(place.tokens for place in made.places) / makespan
        return Trial(count, capacity_s, len(made.places), makespan, rate), measure

    tried = [attempt(count) for count in tokens]
    usable = [(trial, measure) for trial, measure in tried if measure is not None]
    if not usable:
        raise PlanError(f"no capacity can be used; the largest: {tried[-1][0].refused}")
    best, measure = max(usable, key=lambda pair: pair[0].tokens_per_s)
    return Choice(best, measure, tuple(trial for trial, _ in tried))


def candidates(
    queues: Sequence[JobQueue], cost: CostModel, hardware: Hardware, count: int = _CANDIDATES
) -> tuple[int, ...]:
    """Capacities worth trying, in tokens of the run's mix, in even ratios.

    From the least that holds each sample by itself, to what memory allows or, where that is less,
    the largest global batches of all jobs together: no place can hold more.

    Raises:
        PlanError: No training samples, or the base and its adapters alone fill a stage.
    """
    typical = typical_counts(queues)
    slowest = cost.stages[cost.slowest(typical)].seconds
    per_token = (slowest(typical) - slowest(typical.scaled(0))) / typical.tokens
    longest = slowest.segment + max(_longest(queue, slowest) for queue in queues)
    # Two loads are rounded up: the sample's and its segment's, which the capacity holds once.
    room = longest / (1 - 4 / UNITS) - slowest.segment
    least = math.ceil(room / per_token) if per_token > 0 else 1
    most = sum(max(sum(b.lengths) for b in queue.batches) for queue in queues if queue.batches)
    if hardware.memory_bytes is not None:
        limits = memory_limit(cost, typical, hardware.memory_bytes)
        most = min([most, *(limit for limit in limits if limit is not None)])
    if most <= least:
        return (least,)
    ratio = (most / least) ** (1 / (count - 1))
    return tuple(sorted({round(least * ratio**power) for power in range(count)}))


def sample_run(queues: Sequence[JobQueue], tokens: int) -> tuple[JobQueue, ...]:
    """The beginning of a run that has about so many tokens.

    Each job gives the same share of its steps, two at least, so that long jobs stay long beside
    short ones; evals beyond are left out.
    """
    total = sum(sum(batch.lengths) for queue in queues for batch in queue.batches)
    share = min(1.0, tokens / total) if total else 1.0
    cut: list[JobQueue] = []
    for queue in queues:
        batches = queue.batches[: max(2, math.ceil(share * len(queue.batches)))]
        last = batches[-1].step if batches else math.inf
        evals = {step: batch for step, batch in queue.evals.items() if step <= last}
        cut.append(
            replace(queue, batches=batches, evals=evals, remaining_load=0, remaining_steps=0)
        )
    return tuple(cut)


def typical_counts(queues: Sequence[JobQueue]) -> Counts:
    """The sum of all training samples, as one segment: what the run's mix is.

    Raises:
        PlanError: There are none.
    """
    tokens = squares = labelled = token_ranks = 0
    for queue in queues:
        for batch in queue.batches:
            batch_tokens = sum(batch.lengths)
            tokens += batch_tokens
            squares += sum(length * length for length in batch.lengths)
            labelled += sum(batch.labelled)
            token_ranks += batch_tokens * queue.rank
    if not tokens:
        raise PlanError("capacity: the jobs have no training samples; allowed: at least one.")
    return Counts(tokens, squares, labelled, 1, token_ranks)


def _seconds(cost: CostModel, typical: Counts, tokens: int) -> float:
    """Of a microbatch of so many tokens of the mix, on the slowest stage."""
    stage = cost.stages[cost.slowest(typical)]
    return stage.seconds(typical.scaled(tokens / typical.tokens))


def _longest(queue: JobQueue, seconds: Linear) -> float:
    """What the sample that takes longest adds to a microbatch; 0 without samples."""
    token, square = seconds.token + queue.rank * seconds.token_rank, seconds.square
    row = seconds.labelled
    return max(
        (
            (token + square * length) * length + row * labelled
            for batch in (*queue.batches, *queue.evals.values())
            for length, labelled in zip(batch.lengths, batch.labelled, strict=True)
        ),
        default=0.0,
    )
