"""What is recommended follows from the costs, and what cannot be run says what would fit."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from lorafusion.errors import PlanError
from lorafusion.planner.cost import Linear, StageCost
from lorafusion.planner.parts import PartCosts
from lorafusion.planner.queue import Batch, JobQueue
from lorafusion.profiling.advice import advise

LAYER = StageCost(
    forward=Linear(fixed=0.01, token=1e-4),
    backward=Linear(fixed=0.01, token=2e-4),
    activation=Linear(token=10_000),
    static_bytes=1e6,
    working=Linear(token=100),
)
END = StageCost(Linear(), Linear(), static_bytes=1e6)
PARTS = PartCosts(8, True, END, LAYER, END, Linear(fixed=1e-4), "synthetic")
ROW = 100


def jobs(count: int, batch: int, steps: int = 20) -> list[JobQueue]:
    numbers = random.Random(0)

    def one(step: int) -> Batch:
        lengths = tuple(numbers.randint(20, 60) for _ in range(batch))
        return Batch(step, tuple(range(batch)), lengths)

    return [
        JobQueue(f"job{i}", tuple(one(s) for s in range(1, steps + 1)), rank=8)
        for i in range(count)
    ]


def test_small_batches_are_better_together() -> None:
    """Alone 0.16 s + 160 tokens of 2.4 ms, together six times the tokens for the same 0.16 s."""
    found = advise(jobs(6, 4), {1: PARTS}, row_bytes=ROW, memory_bytes={1: 1e9})
    assert found.over_alone == pytest.approx(1.32, abs=0.03)
    assert found.company_pays
    assert found.best.capacity > 160  # more than one job's batch
    assert found.best.stages == 1
    assert not found.best.recompute


@pytest.mark.parametrize("error", [0.0, 0.05, 0.2])
def test_a_gain_within_the_error_is_none(error: float) -> None:
    found = advise(jobs(6, 4), {1: PARTS}, row_bytes=ROW, memory_bytes={1: 1e9}, error=error).best
    assert found.trials is not None
    enough = (1 - max(error, 0.01)) * max(found.trials.values())
    assert found.capacity == min(tokens for tokens, rate in found.trials.items() if rate >= enough)


def test_where_nothing_is_gained_it_says_so() -> None:
    """Without a fixed cost, and on one stage, company saves nothing."""
    free = replace(
        LAYER, forward=Linear(token=1e-4), backward=Linear(token=2e-4), activation=Linear(token=1)
    )
    found = advise(
        jobs(4, 8), {1: replace(PARTS, layer=free)}, row_bytes=ROW, memory_bytes={1: 1e9}
    )
    assert found.over_alone == pytest.approx(1, abs=0.02)
    assert not found.company_pays


def test_memory_asks_for_recomputation() -> None:
    """Room for 112 tokens without it, where six jobs would fill 960."""
    room = 8 * LAYER.static_bytes + 2 * END.static_bytes + 8 * 10_000 * 100
    found = advise(jobs(6, 4), {1: PARTS}, row_bytes=ROW, memory_bytes={1: room})
    assert found.best.recompute
    plain = next(option for option in found.options if not option.recompute)
    assert 100 <= plain.capacity <= 112
    assert plain.tokens_per_s < found.best.tokens_per_s


def test_the_smallest_capacity_near_the_best_is_taken() -> None:
    found = advise(jobs(6, 4), {1: PARTS}, row_bytes=ROW, memory_bytes={1: 1e9})
    assert found.best.trials is not None
    best = max(found.best.trials.values())
    smaller = {c: rate for c, rate in found.best.trials.items() if c < found.best.capacity}
    assert all(rate < 0.99 * best for rate in smaller.values())


def test_more_stages_are_tried() -> None:
    ways = {1: PARTS, 4: PARTS}
    found = advise(jobs(8, 8), ways, row_bytes=ROW, memory_bytes=dict.fromkeys(ways, 1e9))
    assert found.best.stages == 4
    assert {option.stages for option in found.options} == {1, 4}
    assert [len(layers) for layers in found.best.cut] == [2, 2, 2, 2]


def test_what_fits_nowhere_says_what_would() -> None:
    """8 MB of layers on stages of 5 MB."""
    with pytest.raises(PlanError, match=r"nothing is left.*What would fit: 2 stages of 0.01 GB"):
        advise(jobs(2, 4), {1: PARTS}, row_bytes=ROW, memory_bytes={1: 6.5e6})
    with pytest.raises(PlanError, match="Not even 8 stages"):
        advise(jobs(2, 4), {1: PARTS}, row_bytes=ROW, memory_bytes={1: 1e6})
