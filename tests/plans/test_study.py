"""A study plans what would be trained, within time and memory, from the config alone."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from lorafusion.errors import PlanError
from lorafusion.planner.cost import Counts
from lorafusion.planner.devices import find_device
from lorafusion.planner.queue import Batch, JobQueue
from lorafusion.planner.shape import ModelShape
from lorafusion.planner.verify import find_violations
from lorafusion.plans.study import Study, Wish, study
from tests.planner.base_configs import CONFIGS

SHAPE = ModelShape.from_config(CONFIGS["Llama-3.1-8B"])
H100 = find_device("h100")


def queue(name: str, median: int, *, steps: int, size: int, rank: int = 16) -> JobQueue:
    rng = random.Random(name)
    batches = tuple(
        Batch(
            step,
            tuple(range(step * size, step * size + size)),
            lengths := tuple(
                min(4096, 1 + int(rng.lognormvariate(0, 0.6) * median)) for _ in range(size)
            ),
            labelled=tuple(1 + length // 8 for length in lengths),
        )
        for step in range(1, steps + 1)
    )
    held_out = Batch(0, (0, 1), (median, median))
    return JobQueue(name, batches, {0: held_out}, rank=rank)


QUEUES = [
    queue(name, median, steps=steps, size=16)
    for name, median, steps in (("a", 400, 9), ("b", 800, 6), ("c", 1200, 4), ("d", 700, 7))
]


@pytest.fixture(scope="module")
def found() -> Study:
    return study(QUEUES, SHAPE, Wish(H100, stages=4))


def test_the_plan_is_valid_and_within_time_and_memory(found: Study) -> None:
    limits = found.plan.limits
    assert (limits.stages, limits.replicas) == (4, 1)
    planned = {
        (item.job, kind.kind, sample): load
        for kind in found.plan.places
        for item in kind.segments
        for sample, load in zip(item.samples, item.loads, strict=True)
    }
    loaded = [
        replace(
            each,
            batches=tuple(
                replace(b, loads=tuple(planned[each.name, "train", s] for s in b.samples))
                for b in each.batches
            ),
            evals={
                t: replace(b, loads=tuple(planned[each.name, "eval", s] for s in b.samples))
                for t, b in each.evals.items()
            },
            remaining_load=0,
        )
        for each in QUEUES
    ]
    assert find_violations(found.plan, loaded) == ()
    for place in found.plan.places:
        counts = Counts.of(place, found.ranks)
        assert max(s.seconds(counts) for s in found.cost.stages) <= (
            found.choice.best.capacity_s * (1 + 1e-9)
        )
    assert max(found.simulation.peak_bytes) <= H100.usable_bytes


def test_the_capacity_is_the_best_of_those_tried(found: Study) -> None:
    rates = [trial.tokens_per_s for trial in found.choice.trials]
    assert len(rates) > 5 and found.choice.best.tokens_per_s == max(rates)
    assert len({trial.places for trial in found.choice.trials}) > 3


def test_other_schedules_stand_beside(found: Study) -> None:
    ours, *others = found.schedules
    assert len(others) == 3
    assert all(other.makespan_s > ours.makespan_s for other in others)
    assert ours.bubble < min(other.bubble for other in others)
    plain = study(QUEUES, SHAPE, Wish(H100, stages=4, compare=False, capacity_tokens=8192))
    assert plain.schedules == ()
    assert [trial.tokens for trial in plain.choice.trials] == [8192]


def test_stages_are_cut_by_time_and_the_head_counts() -> None:
    def lengths(labelled: int) -> list[int]:
        batch = Batch(1, (0, 1), (900, 900), labelled=(labelled, labelled))
        found = study([JobQueue("a", (batch,))], SHAPE, Wish(H100, stages=4, compare=False))
        return [len(cut) for cut in found.cut]

    assert lengths(1) == [8, 8, 8, 8]
    assert lengths(900) != [8, 8, 8, 8] and lengths(900)[-1] == min(lengths(900))


def test_what_cannot_be_is_refused_with_the_reason() -> None:
    with pytest.raises(PlanError, match="33 stages for 32 layers"):
        study(QUEUES, SHAPE, Wish(H100, stages=33))
    small = replace(H100, memory_bytes=10e9)
    with pytest.raises(PlanError, match=r"weights and the adapters take .* GB"):
        study(QUEUES, SHAPE, Wish(small))
    with pytest.raises(PlanError, match=r"job '[abc]', sample \d+"):
        study(QUEUES, SHAPE, Wish(H100, capacity_tokens=1500))
