from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafusion.errors import PlanError
from lorafusion.planner.cost import CostModel, Counts, Linear, StageCost
from lorafusion.planner.memory import memory_limit, memory_share, peak_activations

HELD = Linear(token=10.0, labelled=2.0)
STAGE = StageCost(Linear(), Linear(), activation=HELD, static_bytes=100.0, working=Linear(fixed=7))
MIX = Counts(tokens=50, labelled=25, segments=1)


def test_early_stages_hold_more_microbatches() -> None:
    peaks = peak_activations(CostModel((STAGE,) * 3))
    assert peaks == tuple(Linear(fixed=7, token=10 * n, labelled=2 * n) for n in (3, 2, 1))


def test_the_limit_fills_each_stage() -> None:
    # 11 bytes a token for each microbatch in flight, 7 for the one at work.
    limits = memory_limit(CostModel((STAGE,) * 3), MIX, 1100)
    assert limits == (993 // 33, 993 // 22, 993 // 11)


@given(st.floats(200, 1e9), st.integers(1, 4))
def test_one_token_more_is_too_much(memory: float, stages: int) -> None:
    cost = CostModel((STAGE,) * stages)
    for index, limit in enumerate(memory_limit(cost, MIX, memory)):
        assert limit is not None
        peak = peak_activations(cost)[index]
        for tokens, fits in ((limit, True), (limit + 1, False)):
            full = 100 + peak(MIX.scaled(tokens / MIX.tokens))
            assert (full <= memory * (1 + 1e-12)) == fits or math.isclose(full, memory)


def test_no_limit_where_nothing_is_held() -> None:
    free = StageCost(Linear(), Linear())
    assert memory_limit(CostModel((STAGE, free)), MIX, 1100) == (993 // 22, None)


def test_a_share_bounds_every_stage() -> None:
    other = StageCost(Linear(), Linear(), activation=Linear(token=1, labelled=100))
    share = memory_share(CostModel((STAGE, other)), 1100)
    # 1,100 bytes less 107 on the first, which holds two.
    assert share.values == pytest.approx((0, 20 / 993, 0, 100 / 1100, 0, 0))


def test_a_base_that_fills_a_stage() -> None:
    cost = CostModel((StageCost(Linear(), Linear()), STAGE))
    with pytest.raises(PlanError, match=r"stage 1 of 2: .*Use more stages"):
        memory_limit(cost, MIX, 100)
    with pytest.raises(PlanError, match="stage 1 of 2"):
        memory_share(cost, 99)


@pytest.mark.parametrize("memory", [0.0, -1.0, math.nan, math.inf])
def test_memory_that_is_none(memory: float) -> None:
    with pytest.raises(PlanError, match=r"memory: .* allowed: a finite number above 0"):
        memory_limit(CostModel((STAGE,)), MIX, memory)


def test_a_mix_of_nothing() -> None:
    with pytest.raises(PlanError, match="no tokens"):
        memory_limit(CostModel((STAGE,)), Counts(), 1000)
