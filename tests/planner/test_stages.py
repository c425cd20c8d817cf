from __future__ import annotations

import math
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafusion.errors import PlanError
from lorafusion.planner.stages import cut_layers

TIMES = st.lists(st.floats(0, 10), min_size=1, max_size=8)


def times_of(
    cut: tuple[range, ...], seconds: list[float], first: float, last: float
) -> list[float]:
    times = [math.fsum(seconds[index] for index in layers) for layers in cut]
    times[0] += first
    times[-1] += last
    return times


def all_cuts(layers: int, stages: int) -> list[tuple[range, ...]]:
    inner = combinations(range(1, layers), stages - 1)
    return [tuple(range(*ends) for ends in pairwise((0, *cut, layers))) for cut in inner]


@given(TIMES, st.floats(0, 20), st.floats(0, 20), st.data())
def test_no_other_cut_has_a_faster_slowest_stage(
    seconds: list[float], first: float, last: float, data: st.DataObject
) -> None:
    stages = data.draw(st.integers(1, len(seconds)))
    cut = cut_layers(seconds, stages, first=first, last=last)
    cuts = all_cuts(len(seconds), stages)
    assert cut in cuts
    slowest = [max(times_of(other, seconds, first, last)) for other in cuts]
    assert max(times_of(cut, seconds, first, last)) <= min(slowest) * (1 + 1e-8) + 1e-12


@given(st.lists(st.integers(0, 6), min_size=1, max_size=7), st.integers(0, 9), st.data())
def test_of_those_the_most_even_and_then_the_one_that_starts_with_least(
    seconds: list[int], last: int, data: st.DataObject
) -> None:
    stages = data.draw(st.integers(1, len(seconds)))
    floats = [float(value) for value in seconds]

    def rank(cut: tuple[range, ...]) -> tuple[float, float]:
        times = times_of(cut, floats, 0, last)
        return max(times), sum(time * time for time in times)

    cut = cut_layers(floats, stages, last=last)
    cuts = all_cuts(len(seconds), stages)
    assert rank(cut) == min(map(rank, cuts))
    equal = [other for other in cuts if rank(other) == rank(cut)]
    # The last stage takes all it can, then the one before it.
    assert cut == min(equal, key=lambda other: [layers.start for layers in reversed(other)])


def test_embedding_and_head_count() -> None:
    assert [len(layers) for layers in cut_layers([1.0] * 8, 4)] == [2, 2, 2, 2]
    assert [len(layers) for layers in cut_layers([1.0] * 8, 4, last=2)] == [2, 2, 3, 1]
    assert [len(layers) for layers in cut_layers([1.0] * 8, 4, first=2)] == [1, 2, 2, 3]
    assert [len(layers) for layers in cut_layers([1.0] * 8, 4, last=1.0)] == [2, 2, 2, 2]
    assert [len(layers) for layers in cut_layers([1.0] * 7, 4, last=1.0)] == [2, 2, 2, 1]


def test_the_slowest_stage_counts_before_the_squares() -> None:
    # Stages of 7, 9, 1, 9; those of 5, 2, 9, 10 have the smaller squares.
    cut = cut_layers([5.0, 1, 1, 9, 1, 9], 4)
    assert [len(layers) for layers in cut] == [3, 1, 1, 1]


def test_layers_need_not_be_alike() -> None:
    assert cut_layers([5.0, 1.0, 1.0, 1.0, 4.0], 3) == (range(1), range(1, 4), range(4, 5))


def test_a_large_model_on_many_stages() -> None:
    cut = cut_layers([0.1] * 126, 16, last=0.25)
    assert [len(layers) for layers in cut].count(8) == 15
    assert len(cut[-1]) == 6


@pytest.mark.parametrize(("layers", "stages"), [(4, 5), (4, 0), (4, -1), (0, 1)])
def test_each_stage_needs_a_layer(layers: int, stages: int) -> None:
    with pytest.raises(PlanError, match=f"{stages} stages for {layers} layers; allowed: 1 to"):
        cut_layers([1.0] * layers, stages)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_times_that_are_none(value: float) -> None:
    with pytest.raises(PlanError, match="layer 1 takes"):
        cut_layers([1.0, value], 1)
    with pytest.raises(PlanError, match="the embedding takes"):
        cut_layers([1.0], 1, first=value)
    with pytest.raises(PlanError, match="the head takes"):
        cut_layers([1.0], 1, last=value)
