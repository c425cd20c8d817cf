"""The baselines give valid plans in the order that they are named for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafusion.errors import PlanError
from lorafusion.planner.baselines import (
    Baseline,
    each_alone,
    lorafusion_greedy,
    mlora,
    one_after_another,
)
from lorafusion.planner.case import Case
from lorafusion.planner.place_times import load_times
from lorafusion.planner.plan import Limits, Plan
from lorafusion.planner.queue import Batch, JobQueue
from lorafusion.planner.simulate import simulate
from lorafusion.planner.sweep import load_bubble
from lorafusion.planner.verify import find_violations

CASES = Path(__file__).with_name("cases")
BASELINES = [one_after_another, mlora, lorafusion_greedy]
Make = Callable[[Sequence[JobQueue], Limits], Baseline]


def job(name: str, *batches: Sequence[int], **more: Any) -> JobQueue:
    """A job with these lengths of each step; samples are numbered through."""
    numbered: list[Batch] = []
    first = 0
    for step, lengths in enumerate(batches, 1):
        numbered.append(Batch(step, tuple(range(first, first + len(lengths))), tuple(lengths)))
        first += len(lengths)
    return JobQueue(name, tuple(numbered), **more)


def shown(plan: Plan) -> list[str]:
    """Each place as job, step and lengths, such as "a1:5,3 b1:2"; "" for a no-op."""
    return [
        " ".join(f"{s.job}{s.step}:{','.join(map(str, s.lengths))}" for s in place.segments)
        for place in plan.places
    ]


def test_one_after_another() -> None:
    queues = [job("a", (6, 3, 4), (5,)), job("b", (9, 9), ready_at=2)]
    baseline = one_after_another(queues, Limits(10, stages=3))
    assert shown(baseline.plan) == ["a1:6,4", "a1:3", "a2:5", "b1:9", "b1:9"]
    assert baseline.plan.places[1].completes == (("a", 1),)
    assert baseline.flush_after == {1, 2, 4}
    assert shown(baseline.unflushed()) == [
        *("a1:6,4", "a1:3", "", "", "a2:5", "", "", "b1:9", "b1:9")
    ]


def test_each_alone() -> None:
    queues = [job("a", (6, 3)), job("b", (9, 9), (1,))]
    alone = each_alone(queues, Limits(10, stages=2))
    assert {name: shown(baseline.plan) for name, baseline in alone.items()} == {
        "a": ["a1:6,3"],
        "b": ["b1:9", "b1:9", "b2:1"],
    }
    assert alone["b"].flush_after == {1, 2}


def test_mlora_takes_turns() -> None:
    queues = [job("a", (6, 3, 4), (5,), (5,)), job("b", (1,), (9, 9)), job("c", (2,))]
    plan = mlora(queues, Limits(10, stages=3)).plan
    assert shown(plan) == [
        # each next step is three places behind the last one of its job without help
        *("a1:6,4", "a1:3", "b1:1", "c1:2", "a2:5", "b2:9", "b2:9", "a3:5")
    ]
    # Without c and with four stages, a waits for two places.
    two = mlora(queues[:2], Limits(10, stages=4)).plan
    assert shown(two)[:6] == ["a1:6,4", "a1:3", "b1:1", "", "", "a2:5"]


def test_no_noop_stands_where_none_is_needed() -> None:
    """Taking any one away breaks the order."""
    queues = [job("a", (8, 8), (8,), (8,)), job("b", (9,), (9, 9)), job("c", (4,), (3,))]
    for stages in (2, 3, 5):
        plan = mlora(queues, Limits(10, stages)).plan
        for index, place in enumerate(plan.places):
            if place.kind == "noop":
                rest = (*plan.places[:index], *plan.places[index + 1 :])
                assert find_violations(Plan(plan.limits, rest), queues)


def test_lorafusion_pairs_long_with_short() -> None:
    """µ = 90, 60, 50, 20 in batches of four: a and d pair up, and b and c, if enough remains."""
    lengths = {"d": 20, "a": 90, "c": 50, "b": 60}
    queues = [job(name, (length,) * 4) for name, length in lengths.items()]
    plan = lorafusion_greedy(queues, Limits(110, stages=3)).plan
    assert shown(plan) == ["d1:20 a1:90"] * 4 + ["c1:50 b1:60"] * 4
    # Of b and c are left 2 + 3, so pairs stand as long as S - 1 is no more.
    assert shown(lorafusion_greedy(queues, Limits(110, stages=6)).plan) == shown(plan)
    alone = shown(lorafusion_greedy(queues, Limits(110, stages=7)).plan)
    assert alone[:4] == ["a1:90"] * 4


def test_lorafusion_leaves_the_jobs_apart_where_too_little_remains() -> None:
    queues = [job("a", (20, 20)), job("b", (90, 90)), job("c", (20, 20))]
    plan = lorafusion_greedy(queues, Limits(100, stages=4)).plan
    assert shown(plan) == ["a1:20,20", "b1:90", "b1:90", "c1:20,20"]


def test_lorafusion_merges_where_the_order_has_room() -> None:
    """b's smallest takes in a's; a's 9 has no room for b's 3; the last of a group takes nothing."""
    queues = [job("a", (9, 2), (9, 2)), job("b", (9, 3), (9, 3))]
    plan = lorafusion_greedy(queues, Limits(10, stages=2)).plan
    assert shown(plan) == ["b1:9", "a1:2 b1:3", "a1:9", "b2:9", "b2:3", "a2:9", "a2:2"]
    # With four stages, three would have to stand between b1 and b2.
    assert "a1:2 b1:3" not in shown(lorafusion_greedy(queues, Limits(10, stages=4)).plan)


def test_lorafusion_moves_a_part_where_not_all_fits() -> None:
    queues = [job("a", (6, 4, 3, 3), (9,)), job("b", (9, 5), (9, 5))]
    plan = lorafusion_greedy(queues, Limits(10, stages=2)).plan
    # b1's 5 takes one of a's 3s in; the other 3 then takes in b2's 5.
    assert shown(plan) == ["b1:9", "a1:3 b1:5", "a1:6,4", "a1:3 b2:5", "b2:9", "a2:9"]


def test_lorafusion_puts_noops_before_the_step_in_two_passes() -> None:
    queues = [job("a", (6,), (8, 5, 5, 3)), job("b", (6, 9, 5), (8, 4, 5))]
    plan = lorafusion_greedy(queues, Limits(10, stages=4)).plan
    # a2's 3 must stand in place 4 or later: its step is b1's, so the no-ops go before b1.
    assert shown(plan)[:6] == ["a1:6", "", "", "b1:9", "a2:3 b1:5", "b1:6"]


@pytest.mark.parametrize(
    ("name", "microbatches", "noops", "bubble"),
    [
        ("lognormal_0", 79, 0, 0.0624),
        ("lognormal_1", 77, 0, 0.0637),
        ("lognormal_2", 80, 0, 0.0794),
        ("small_batches", 142, 88, 0.4361),
        ("two_jobs", 31, 17, 0.5081),
    ],
)
def test_lorafusion_is_theirs(name: str, microbatches: int, noops: int, bubble: float) -> None:
    """What LoRAFusion's own code plans in greedy mode, padded to blocks of 128 as on an H100.

    Its bubble was simulated with padded tokens.
    """
    case = Case.read(CASES / f"{name}.json")
    plan = lorafusion_greedy(case.queues(), case.limits(), padding=128).plan
    assert find_violations(plan, case.queues()) == ()
    padded = [sum(-(-sum(s.lengths) // 128) * 128 for s in place.segments) for place in plan.places]
    assert (len(padded) - padded.count(0), padded.count(0)) == (microbatches, noops)
    assert load_bubble(padded, case.stages) == pytest.approx(bubble, abs=5e-5)


def test_padding_counts_each_job_apart() -> None:
    queues = [job("a", (10, 10)), job("b", (10,))]
    # Padded to 16: 32 for both of a's samples, 16 for b's.
    for capacity, places in ((48, 1), (47, 2)):
        plan = lorafusion_greedy(queues, Limits(capacity), padding=16).plan
        assert len(plan.places) == places
        assert len(lorafusion_greedy(queues, Limits(capacity)).plan.places) == 1


def test_segment_load_counts() -> None:
    queues = [job("a", (10, 10)), job("b", (10,))]
    limits = Limits(36, stages=1, segment_load=3)
    assert shown(lorafusion_greedy(queues, limits).plan) == ["a1:10,10 b1:10"]
    tight = Limits(35, stages=1, segment_load=3)
    assert len(lorafusion_greedy(queues, tight).plan.places) == 2


@st.composite
def jobs(draw: st.DrawFn) -> list[JobQueue]:
    """Jobs with batches of unequal sizes and numbers, some of them begun in an earlier window."""
    batch = st.lists(st.integers(1, 20), min_size=1, max_size=6)
    queues: list[JobQueue] = []
    for index in range(draw(st.integers(0, 5))):
        batches = draw(st.lists(batch, max_size=5))
        queues.append(job(f"job{index}", *batches, ready_at=draw(st.integers(0, 4))))
    return queues


LIMITS = st.builds(
    Limits,
    capacity=st.integers(23, 60),
    stages=st.integers(1, 5),
    replicas=st.integers(1, 2),
    segment_load=st.integers(0, 3),
)


@pytest.mark.parametrize("make", BASELINES)
@given(queues=jobs(), limits=LIMITS)
def test_every_baseline_is_valid_and_whole(
    make: Make, queues: list[JobQueue], limits: Limits
) -> None:
    baseline = make(queues, limits)
    assert find_violations(baseline.unflushed(), queues) == ()
    due = {(q.name, b.step, s) for q in queues for b in q.batches for s in b.samples}
    places = baseline.plan.places
    assert due == {
        (g.job, g.step, s) for place in places for g in place.segments for s in g.samples
    }
    if make is not lorafusion_greedy:
        assert all(len(place.segments) <= 1 for place in places)
    assert make(queues, limits) == baseline


@given(queues=jobs(), capacity=st.integers(20, 60), stages=st.integers(1, 5))
def test_a_flush_takes_as_long_as_noops(queues: list[JobQueue], capacity: int, stages: int) -> None:
    baseline = one_after_another(queues, Limits(capacity, stages))
    flushed = simulate(load_times(baseline.plan), stages=stages, flush_after=baseline.flush_after)
    unflushed = simulate(load_times(baseline.unflushed()), stages=stages)
    assert flushed.makespan_s == unflushed.makespan_s


@pytest.mark.parametrize("make", [*BASELINES, each_alone])
@pytest.mark.parametrize(
    ("queues", "limits", "message"),
    [
        ([job("a", (5,)), job("a", (5,))], Limits(9), "2 queues of job 'a'"),
        ([job("a", (5,), evals={1: Batch(1, (0,), (1,))})], Limits(9), "job 'a' has evals"),
        ([job("a", (5,), (4, 10))], Limits(9), "job 'a', sample 2: a load of 10 alone"),
        ([job("a", (5,), (4, 9))], Limits(9, segment_load=1), "sample 2: a load of 10 alone"),
        ([job("a", (5,))], Limits(9, stages=0), "are 9, 0, 1 and 1"),
    ],
)
def test_bad_input(make: Make, queues: Any, limits: Limits, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        make(queues, limits)


def test_bad_padding() -> None:
    with pytest.raises(PlanError, match="padding"):
        lorafusion_greedy([job("a", (5,))], Limits(9), padding=0)
    with pytest.raises(PlanError, match="sample 0: a load of 16 alone"):
        lorafusion_greedy([job("a", (5,))], Limits(9), padding=16)
