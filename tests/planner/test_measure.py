from __future__ import annotations

import math
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafusion.errors import PlanError
from lorafusion.planner.cost import CostModel, Counts, Linear, StageCost
from lorafusion.planner.measure import UNITS, Measure, measured
from lorafusion.planner.memory import peak_activations
from lorafusion.planner.queue import Batch, JobQueue

TYPICAL = Counts(1000, 500_000, 600, 1, 16_000)
# Seconds and bytes of a device that holds 1e9 bytes, in proportions that all matter.
LINEARS = st.builds(
    Linear,
    st.floats(0, 2e-2),
    st.floats(1e-6, 1e-4),
    st.floats(0, 1e-7),
    st.floats(0, 1e-4),
    st.floats(0, 1e-2),
    st.floats(0, 1e-5),
)
BYTES = st.builds(
    Linear,
    st.floats(0, 1e7),
    st.floats(0, 2e5),
    st.floats(0, 10),
    st.floats(0, 1e5),
    st.floats(0, 1e6),
    st.floats(0, 1e3),
)
STAGES = st.builds(
    StageCost,
    LINEARS,
    LINEARS,
    st.just(0.0),
    st.just(0.0),
    BYTES,
    st.floats(0, 5e8),
    BYTES,
)
MEMORY = 1e9
Sample = tuple[int, int, int]
"""Tokens, labelled, job."""
SAMPLES = st.lists(
    st.tuples(st.integers(1, 2000), st.integers(0, 2000), st.integers(0, 2)).map(
        lambda sample: (sample[0], min(sample[:2]), sample[2])
    ),
    min_size=1,
    max_size=40,
)
RANKS = (4, 16, 64)


def counts_of(samples: list[Sample]) -> Counts:
    return Counts(
        tokens=sum(length for length, _, _ in samples),
        squares=sum(length**2 for length, _, _ in samples),
        labelled=sum(labelled for _, labelled, _ in samples),
        segments=len({job for _, _, job in samples}),
        token_ranks=sum(length * RANKS[job] for length, _, job in samples),
    )


def load_of(samples: list[Sample], measure: Measure) -> int:
    loads = [measure.loads([n], [labelled], RANKS[job])[0] for n, labelled, job in samples]
    return sum(loads) + measure.segment_load * len({job for _, _, job in samples})


@given(st.lists(STAGES, min_size=1, max_size=4), st.floats(0.1, 2), SAMPLES)
def test_what_fits_by_loads_is_within_time_and_memory(
    stages: list[StageCost], capacity_s: float, samples: list[Sample]
) -> None:
    cost = CostModel(tuple(stages))
    try:
        measure = Measure.of(cost, TYPICAL, capacity_s, memory_bytes=MEMORY)
    except PlanError:  # the fixed parts are too large
        return
    chosen: list[Sample] = []
    for sample in samples:
        try:
            if load_of([*chosen, sample], measure) <= measure.limits().capacity:
                chosen.append(sample)
        except PlanError:  # fits nowhere
            continue
    if not chosen:
        return
    counts = counts_of(chosen)
    slowest = cost.stages[cost.slowest(TYPICAL)]
    assert slowest.seconds(counts) <= capacity_s * (1 + 1e-5)
    for stage, peak in zip(cost.stages, peak_activations(cost), strict=True):
        assert stage.static_bytes + peak(counts) <= MEMORY * (1 + 1e-5)


@given(STAGES, st.floats(0.1, 2), SAMPLES)
def test_a_load_is_the_larger_share_rounded_up_once(
    stage: StageCost, capacity_s: float, samples: list[Sample]
) -> None:
    measure = Measure.of(CostModel((stage,)), TYPICAL, capacity_s, memory_bytes=MEMORY)
    assert measure.memory is not None
    for length, labelled, job in samples:
        counts = Counts(length, length**2, labelled, 0, length * RANKS[job])
        assert measure.time.fixed == measure.memory.fixed == 0
        exact = UNITS * max(measure.time(counts), measure.memory(counts))
        try:
            (load,) = measure.loads([length], [labelled], RANKS[job])
        except PlanError:
            assert exact > measure.limits().capacity - measure.segment_load - 1
        else:
            assert max(1, exact - 1e-5) <= load <= max(1, exact + 1)


def stage(**per_stage: Linear) -> StageCost:
    return StageCost(per_stage.pop("forward", Linear(token=1.0)), Linear(), **per_stage)


def test_tokens_alone_are_loads_to_the_last_unit() -> None:
    # In floats some of 0.0003 · n / 1.5 · 5,000 are a hair above n.
    lengths = list(range(1, 5001))
    cost = CostModel((stage(forward=Linear(token=3e-4)),))
    measure = Measure.of(cost, TYPICAL, 5000 * 3e-4, units=5000)
    assert measure.loads(lengths, lengths, 8) == tuple(lengths)
    assert measure.limits().capacity == 5000


def test_where_memory_never_binds_loads_are_time() -> None:
    timed = stage(forward=Linear(token=1e-5, square=1e-8), activation=Linear(token=1e4))
    lengths, labelled = [10, 500, 4000], [10, 20, 30]
    free = Measure.of(CostModel((timed,)), TYPICAL, 1.0)
    ample = Measure.of(CostModel((timed,)), TYPICAL, 1.0, memory_bytes=1e12)
    tight = Measure.of(CostModel((timed,)), TYPICAL, 1.0, memory_bytes=5e7)
    assert free.loads(lengths, labelled, 8) == ample.loads(lengths, labelled, 8)
    assert free.loads(lengths, labelled, 8) == tuple(
        math.ceil(UNITS * (1e-5 * n + 1e-8 * n * n) - 1e-6) for n in lengths
    )
    # 10,000 bytes a token of 5e7: 5,000 tokens are full.
    assert tight.loads(lengths, labelled, 8) == tuple(math.ceil(UNITS * n / 5000) for n in lengths)


def test_early_stages_hold_more_microbatches() -> None:
    alike = stage(forward=Linear(token=1e-9), activation=Linear(token=1.0))
    cost = CostModel((alike,) * 4)
    assert Measure.of(cost, TYPICAL, 1.0, memory_bytes=4000).loads([500], [0], 8) == (UNITS // 2,)


def test_what_every_microbatch_takes_is_off_the_capacity() -> None:
    timed = stage(
        forward=Linear(fixed=0.25, token=1e-3, segment=0.01),
        activation=Linear(fixed=100.0, labelled=1.0),
        working=Linear(fixed=50.0),
    )
    measure = Measure.of(CostModel((timed,) * 3), TYPICAL, 1.0, memory_bytes=650)
    limits = measure.limits(replicas=2)
    assert (limits.capacity, limits.stages, limits.replicas) == (UNITS, 3, 2)
    assert limits.segment_load == math.ceil(UNITS * 0.01 / 0.75)
    # Three microbatches in flight, one at work: 300 bytes are left, three a row.
    assert measure.loads([300, 300], [0, 50], 8) == (
        math.ceil(UNITS * 0.3 / 0.75),
        math.ceil(UNITS * 0.5),
    )


def test_rank_and_labelled_rows_count() -> None:
    timed = stage(forward=Linear(labelled=1e-3, token_rank=1e-5))
    measure = Measure.of(CostModel((timed,)), TYPICAL, 1.0)
    assert measure.loads([100, 100], [0, 50], 8) == (
        math.ceil(UNITS * 0.008),
        math.ceil(UNITS * 0.058),
    )


def test_a_sample_that_takes_nothing_has_a_load_of_one() -> None:
    measure = Measure.of(CostModel((stage(forward=Linear(labelled=1)),)), TYPICAL, 1000.0)
    assert measure.loads([5], [0], 0) == (1,)


def test_no_samples_have_no_loads() -> None:
    assert Measure.of(CostModel((stage(),)), TYPICAL, 1.0).loads([], [], 8) == ()


def test_a_sample_that_fits_nowhere_is_named_with_its_job_and_what_it_lacks() -> None:
    cost = CostModel((stage(forward=Linear(token=1e-3), activation=Linear(labelled=1.0)),))
    measure = Measure.of(cost, TYPICAL, 1.0, memory_bytes=500)
    assert measure.loads([1000], [500], 8) == (UNITS,)
    with pytest.raises(
        PlanError, match=r"job 'long', sample 77: its 1500 tokens.* 1.5 times the s"
    ):
        measure.loads([10, 1500, 1600], [0, 0, 0], 8, job="long", samples=[76, 77, 78])
    with pytest.raises(
        PlanError, match=r"sample 1: its 900 tokens, 750 of .* 1.5 times the memory"
    ):
        measure.loads([10, 900], [0, 750], 8)


def test_the_segment_itself_takes_room() -> None:
    cost = CostModel((stage(forward=Linear(token=1e-3, segment=0.5)),))
    measure = Measure.of(cost, TYPICAL, 1.0)
    assert measure.loads([500], [0], 8) == (UNITS // 2,)
    with pytest.raises(PlanError, match="sample 0"):
        measure.loads([501], [0], 8)


@pytest.mark.parametrize("capacity_s", [0.0, -1.0, math.nan, math.inf])
def test_capacities_that_are_none(capacity_s: float) -> None:
    with pytest.raises(PlanError, match=r"capacity: .* allowed: a finite time above 0"):
        Measure.of(CostModel((stage(),)), TYPICAL, capacity_s)


def test_a_capacity_below_the_fixed_part() -> None:
    timed = stage(forward=Linear(fixed=1.0), activation=Linear(fixed=10.0))
    with pytest.raises(PlanError, match=r"0\.9 s, but every microbatch takes 1 s.*Raise"):
        Measure.of(CostModel((timed,)), TYPICAL, 0.9)
    with pytest.raises(PlanError, match=r"stage 0 of 2: .*nothing is left for samples"):
        Measure.of(CostModel((timed,) * 2), TYPICAL, 2.0, memory_bytes=20)
    with pytest.raises(PlanError, match="0 replicas"):
        Measure.of(CostModel((stage(),)), TYPICAL, 1.0).limits(replicas=0)


def batches(*lengths: tuple[int, ...]) -> tuple[Batch, ...]:
    starts = accumulate((len(each) for each in lengths), initial=0)
    return tuple(
        Batch(step, tuple(range(start, start + len(each))), each)
        for step, start, each in zip(range(1, len(lengths) + 1), starts, lengths, strict=False)
    )


def test_a_queue_is_measured_with_its_evals_and_what_remains() -> None:
    cost = CostModel((stage(forward=Linear(token=0.5, token_rank=0.05)),))
    measure = Measure.of(cost, TYPICAL, UNITS * 1.0)
    held_out = Batch(1, (0, 1), (6, 8))
    queue = JobQueue(
        "a",
        batches((10, 20), (30,)),
        evals={1: held_out},
        remaining_load=100,
        remaining_steps=4,
        served=3.0,
        rank=30,
    )
    found = measured(queue, measure)
    # (0.5 + 1.5) units a token
    assert [batch.loads for batch in found.batches] == [(20, 40), (60,)]
    assert found.evals[1].loads == (12, 16)
    assert (found.remaining_load, found.remaining_steps, found.served) == (200, 4, 3.0)
    assert [batch.lengths for batch in found.batches] == [(10, 20), (30,)]
    assert measured(found, measure) == found


def test_a_queue_with_evals_alone() -> None:
    measure = Measure.of(CostModel((stage(),)), TYPICAL, float(UNITS))
    queue = JobQueue("a", (), evals={4: Batch(4, (0,), (7,))}, remaining_load=50)
    found = measured(queue, measure)
    assert found.evals[4].loads == (7,)
    assert found.remaining_load == 50


def test_measuring_a_queue_names_the_sample() -> None:
    measure = Measure.of(CostModel((stage(),)), TYPICAL, 25.0)
    queue = JobQueue("a", batches((10, 20), (26,)))
    with pytest.raises(PlanError, match="job 'a', sample 2: its 26 tokens"):
        measured(queue, measure)
