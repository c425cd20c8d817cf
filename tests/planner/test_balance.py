"""A balanced plan is valid, as long as it was, never slower, and planted gains are found."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafusion.planner.balance import balance, draft_loads, pace
from lorafusion.planner.board import Board
from lorafusion.planner.chain import make_chains
from lorafusion.planner.draft import Draft, DraftPlace, to_plan
from lorafusion.planner.plan import Limits
from lorafusion.planner.queue import Batch, JobQueue, advance
from lorafusion.planner.schedule import Scheduler, Tuning
from lorafusion.planner.verify import verify_plan
from tests.planner.strategies import job_queues, limits

CASES = Path(__file__).parent / "cases"


def job(name: str, *steps: Sequence[int], **more: object) -> JobQueue:
    """A job with these loads, step by step."""
    batches = (Batch(step, tuple(range(len(x))), tuple(x)) for step, x in enumerate(steps, 1))
    return JobQueue(name, tuple(batches), **more)  # pyright: ignore[reportArgumentType]


def at(*places: dict[int, tuple[int, ...]]) -> Draft:
    """A draft of train places: job -> positions of its open step."""
    return [DraftPlace("train" if taken else "noop", taken) for taken in places]


@st.composite
def planned(draw: st.DrawFn) -> tuple[tuple[JobQueue, ...], Limits]:
    """Queues of which one may be alone, and limits of which any may be more than nothing."""
    allowed = replace(draw(limits()), place_load=draw(st.sampled_from((0, 0, 1, 9))))
    queues = draw(job_queues())
    if draw(st.booleans()):
        whole = allowed.capacity - allowed.segment_load
        queues += (job("alone", *[[whole]] * draw(st.integers(1, 3))),)
    return queues, allowed


def balanced_loads(draft: Draft, queues: Sequence[JobQueue], limits: Limits) -> list[int]:
    chains = make_chains(queues, limits)
    verify_plan(to_plan(draft, chains, limits), queues)
    after = balance(draft, chains, limits, sweeps=9)
    verify_plan(to_plan(after, chains, limits), queues)
    return draft_loads(after, chains, limits)


@settings(max_examples=200)
@given(planned(), st.integers(0, 9), st.one_of(st.none(), st.integers(1, 20)))
def test_a_balanced_draft_is_valid_as_long_and_no_slower(
    given: tuple[tuple[JobQueue, ...], Limits], sweeps: int, max_places: int | None
) -> None:
    queues, limits = given
    chains = make_chains(queues, limits)
    scheduler = Scheduler(chains, limits)
    scheduler.run(Tuning(), max_places)
    after = balance(scheduler.places, chains, limits, sweeps=sweeps)
    before_plan, plan = (to_plan(draft, chains, limits) for draft in (scheduler.places, after))
    verify_plan(plan, queues)
    assert len(plan.places) == len(before_plan.places)
    before, loads = (
        [place.load(limits) + limits.place_load * bool(place.segments) for place in found.places]
        for found in (before_plan, plan)
    )
    assert loads == draft_loads(after, chains, limits)
    assert pace(loads, limits.distance) <= pace(before, limits.distance)
    # Evals stay, and what comes in the next window waits no longer.
    for old, new in zip(before_plan.places, plan.places, strict=True):
        assert old == new or "eval" not in (old.kind, new.kind)
    for old, new in zip(advance(queues, before_plan), advance(queues, plan), strict=True):
        assert set(old.batches) == set(new.batches)
        if new.remaining_steps:
            assert new.ready_at <= old.ready_at


@settings(max_examples=100)
@given(planned(), st.integers(0, 3000))
def test_work_is_limited_and_the_same_work_gives_the_same_draft(
    given: tuple[tuple[JobQueue, ...], Limits], work: int
) -> None:
    queues, limits = given
    chains = make_chains(queues, limits)
    scheduler = Scheduler(chains, limits)
    scheduler.run(Tuning())
    draft = scheduler.places
    assert balance(draft, chains, limits, work=0) == draft
    some = balance(draft, chains, limits, work=work)
    assert balance(draft, chains, limits, work=work) == some
    paces = [
        pace(draft_loads(found, chains, limits), limits.distance)
        for found in (balance(draft, chains, limits, work=10**6), some, draft)
    ]
    assert paces == sorted(paces)


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 6))
def test_pace_is_the_sum_of_the_largest_loads_of_all_runs(loads: list[int], distance: int) -> None:
    runs = range(1 - distance, len(loads)) if loads else ()
    expected = sum(max(loads[max(0, run) : run + distance]) for run in runs)
    assert pace(loads, distance) == expected


def test_a_step_spreads_over_its_window() -> None:
    """A step of 4 x 3 in 2 of the 3 places that it may have: one sample more, one less."""
    queue = job("a", [3, 3, 3, 3], [1])
    draft = at({0: (0, 1, 2)}, {0: (3,)}, {}, {0: (0,)})
    assert balanced_loads(draft, [queue], Limits(10, 2)) == [6, 6, 0, 1]


def test_a_step_does_not_move_before_ready_at() -> None:
    queue = job("a", [3, 3], [1], ready_at=1)
    draft = at({}, {0: (0, 1)}, {}, {0: (0,)})
    assert balanced_loads(draft, [queue], Limits(10, 2)) == [0, 6, 0, 1]


@pytest.mark.parametrize("continues", [False, True])
def test_the_last_step_stays_early_only_where_something_follows(continues: bool) -> None:
    """Two jobs of one step each in place 0; the first is done with it, or not."""
    more = {"remaining_steps": 2, "remaining_load": 7} if continues else {}
    queues = [job("a", [3, 3], **more), job("b", [2], [2])]
    draft = at({0: (0, 1), 1: (0,)}, {}, {1: (0,)})
    loads = balanced_loads(draft, queues, Limits(8, 2))
    assert loads == ([8, 0, 2] if continues else [5, 3, 2])


def test_an_unfinished_step_keeps_its_place() -> None:
    """Its last sample is for the next window, which must not wait longer for it."""
    queues = [job("a", [3, 3, 3]), job("b", [2], [2])]
    limits = Limits(8, 2)
    chains = make_chains(queues, limits)
    draft = at({0: (0, 1), 1: (0,)}, {}, {1: (0,)})
    assert balance(draft, chains, limits) == draft


def test_evals_stay_and_no_sample_joins_them() -> None:
    queues = [
        JobQueue("a", (Batch(1, (0,), (3,)), Batch(2, (0, 1), (3, 3))), {1: Batch(1, (9,), (1,))})
    ]
    draft = [
        DraftPlace("train", {0: (0,)}),
        DraftPlace("noop", {}),
        DraftPlace("eval", {0: (0,)}),
        DraftPlace("train", {0: (0, 1)}),
        DraftPlace("noop", {}),
    ]
    assert balanced_loads(draft, queues, Limits(8, 2)) == [3, 0, 1, 3, 3]


@pytest.mark.parametrize(("steps", "alone"), [(7, True), (2, False)])
def test_nothing_joins_a_job_that_is_alone(steps: int, alone: bool) -> None:
    """The last place of "full" has room for two samples of "b", which would make it more even."""
    limits = Limits(9, 2, segment_load=1)
    ready = 2 * steps
    full = job("full", *[[8]] * steps, [2])
    queues = [full, job("b", [2, 2, 2, 2], [1], ready_at=ready)]
    chains = make_chains(queues, limits)
    assert [found.alone for found in chains] == [alone, False]
    behind = at({0: (0,)}, {1: (0, 1, 2, 3)}, {}, {1: (0,)})
    draft = [*at(*[{0: (0,)}, {}] * steps), *behind]
    balanced_loads(draft, queues, limits)  # verified: nothing shares its places
    board, last = Board(draft, chains, limits), ready + 3
    everywhere = [ready, ready + 1, ready + 2, ready + 3]
    assert board.open_places(0, ready, last) == (everywhere[0::2] if alone else everywhere)
    assert board.open_places(1, ready, last) == (everywhere[1:] if alone else everywhere)


def test_two_steps_share_the_places_between_them_anew() -> None:
    """The first step has the one spare place, the second needs it: only both at once can move."""
    queue = job("a", [2, 2], [4, 4])
    draft = at({0: (0,)}, {0: (1,)}, {}, {}, {0: (0, 1)})
    # Each alone is level: the first over its window of 3, less 2; the second has one place.
    assert sorted(balanced_loads(draft, [queue], Limits(8, 3)), reverse=True) == [4, 4, 4, 0, 0]


def test_a_sample_goes_where_a_neighbour_is_the_slowest_anyhow() -> None:
    """Least loaded is place 0, but beside place 3's full load, place 2 costs nothing more."""
    queues = [job("big", [9], ready_at=3), job("a", [4, 4])]
    limits = Limits(9, 2)
    chains = make_chains(queues, limits)
    draft = at({1: (0, 1)}, {}, {}, {0: (0,)})
    after = balance(draft, chains, limits, sweeps=9)
    loads = draft_loads(after, chains, limits)
    assert pace(loads, 2) < pace([8, 0, 0, 9], 2)
    assert loads[2] + loads[1] == 8, "beside the big one"


def test_what_a_place_takes_when_it_holds_anything_counts() -> None:
    """Two samples in one place: two places would each take 5 more, which does not pay."""
    queue = job("a", [2, 2], [9])
    draft = at({0: (0, 1)}, {}, {}, {0: (0,)})
    assert balanced_loads(draft, [queue], Limits(9, 2, place_load=0)) == [2, 2, 0, 9]
    assert balanced_loads(draft, [queue], Limits(9, 2, place_load=5)) == [9, 0, 0, 14]


def test_the_bubble_of_small_batches_falls_by_half() -> None:
    """It is chain-bound: one pass leaves 0.22 and more, spreading steps alone left 0.14."""
    case = json.loads((CASES / "small_batches.json").read_text())
    queues = [
        job(item["name"], *[item["lengths"][i : i + size] for i in range(0, 256, size)])
        for item in case["jobs"]
        for size in [item["global_batch_size"]]
    ]
    limits = Limits(case["capacity_tokens"], case["stages"])
    chains = make_chains(queues, limits)
    scheduler = Scheduler(chains, limits)
    scheduler.run(Tuning())
    after = balance(scheduler.places, chains, limits, sweeps=24)
    bubbles: list[float] = []
    for draft in (scheduler.places, after):
        loads = draft_loads(draft, chains, limits)
        bubbles.append(1 - sum(loads) / pace(loads, limits.distance))
    assert bubbles[0] > 0.20 and bubbles[1] < 0.12


def test_two_steps_of_a_job_may_change_places() -> None:
    """Where one of the two comes to stand where the other stood, the place is still the job's."""
    queue = job("a", [1, 1], [1, 1])
    limits = Limits(8, 1)
    chains = make_chains([queue], limits)
    board = Board(at({0: (0,)}, {0: (1,)}, {0: (0, 1)}), chains, limits)
    first, second = board.stays[0]
    board.put((first, {0: [0, 1]}), (second, {1: [0], 2: [1]}))
    assert board.loads == [2, 1, 1]
    expected = at({0: (0, 1)}, {0: (0,)}, {0: (1,)})
    assert board.draft() == expected
    board.put((second, {2: [0, 1]}))
    assert board.loads == [2, 0, 2]


@settings(max_examples=100)
@given(planned(), st.integers(1, 12), st.randoms(use_true_random=False))
def test_a_board_keeps_count(
    given: tuple[tuple[JobQueue, ...], Limits], max_places: int, random: Random
) -> None:
    queues, limits = given
    chains = make_chains(queues, limits)
    scheduler = Scheduler(chains, limits)
    scheduler.run(Tuning(), max_places)
    board = Board(scheduler.places, chains, limits)
    assert board.draft() == scheduler.places
    for stay in board.movable():
        assert board.first_allowed(stay) <= stay.first <= stay.last <= board.last_allowed(stay)
        assert Counter(chain.from_iterable(stay.at.values())) == Counter(stay.order)
        places = board.open_places(stay.job, stay.first, stay.last)
        assert set(stay.at) <= set(places)
        board.put((stay, {random.choice(places): stay.order}))
    assert board.loads == draft_loads(board.draft(), chains, limits)
