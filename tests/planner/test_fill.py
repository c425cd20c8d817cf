"""A place is filled as full as any choice of samples can fill it; the first job takes its due."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafusion.planner.fill import EXACT, Room, fill

jobs_of_few = st.lists(
    st.lists(st.integers(1, 12), min_size=1, max_size=4).map(sorted), min_size=1, max_size=3
)


def load(jobs: Sequence[Sequence[int]], taken: Sequence[Sequence[int]], segment: int = 0) -> int:
    loads = [sum(jobs[job][index] for index in chosen) for job, chosen in enumerate(taken)]
    return sum(loads) + segment * sum(bool(chosen) for chosen in taken)


def choices(jobs: Sequence[Sequence[int]]) -> list[list[list[int]]]:
    """Every way to choose samples."""
    subsets = [
        [[i for i in range(len(loads)) if mask >> i & 1] for mask in range(1 << len(loads))]
        for loads in jobs
    ]
    return [list(choice) for choice in product(*subsets)]


def check_choice(jobs: Sequence[Sequence[int]], taken: Sequence[Sequence[int]]) -> None:
    assert len(taken) <= len(jobs)
    for loads, chosen in zip(jobs, taken, strict=False):
        assert sorted(set(chosen), reverse=True) == chosen
        assert all(0 <= index < len(loads) for index in chosen)


@settings(max_examples=400)
@given(jobs_of_few, st.integers(12, 40), st.integers(0, 3))
def test_no_choice_fills_the_place_more(jobs: list[list[int]], capacity: int, segment: int) -> None:
    room = Room(capacity + segment, capacity + segment, segment)
    taken = fill(jobs, room)
    check_choice(jobs, taken)
    most = max(
        total
        for choice in choices(jobs)
        if choice[0] and (total := load(jobs, choice, segment)) <= room.capacity
    )
    # A job that fills at most half goes in whole, which can cost the exact sum, not more.
    halves = [sum(loads) + segment for loads in jobs if 2 * (sum(loads) + segment) <= room.target]
    if not halves:
        assert load(jobs, taken, segment) == most
    assert 0 < load(jobs, taken, segment) <= room.capacity


def test_the_first_job_takes_the_most_that_still_fills_the_place() -> None:
    # 9 + 8 = 17 would be more of the first job's own, but leaves 3, which nothing fills.
    assert fill([[5, 8, 9], [6, 7]], Room(20, 20)) == [[2, 0], [0]]
    assert fill([[9], [5, 5]], Room(10, 10)) == [[0]], "something of it, even if others fill more"


def test_large_samples_go_first() -> None:
    assert fill([[1, 2, 3, 4, 6]], Room(10, 10)) == [[4, 3]]


def test_least_is_more_than_exact() -> None:
    jobs = [[4, 9, 9], [3, 16]]
    assert fill(jobs, Room(20, 20)) == [[0], [1]]
    assert fill(jobs, Room(20, 20, least=10)) == [[2, 1]]


def test_most_leaves_room_for_others() -> None:
    jobs = [[4, 5, 6, 7], [3, 8, 14]]
    assert fill(jobs, Room(18, 18)) == [[3, 2, 1]]
    assert fill(jobs, Room(18, 18, most=9)) == [[3], [1, 0]]
    assert fill([[7, 9]], Room(10, 10, most=5)) == [[1]], "a limit below every sample is none"


def test_a_target_holds_for_the_others_alone() -> None:
    assert fill([[6, 7], [2, 3, 4]], Room(20, 10)) == [[1, 0]]
    assert fill([[4, 12], [2, 3, 4, 5]], Room(12, 10, most=4)) == [[0], [2, 0]]


def test_a_job_s_own_load_counts() -> None:
    assert fill([[6], [4, 5]], Room(12, 12, 1)) == [[0], [0]]
    assert fill([[6], [4, 5]], Room(11, 11, 1)) == [[0]]


def test_a_job_that_leaves_half_free_goes_in_whole() -> None:
    assert fill([[1, 1, 2], [1, 3, 9]], Room(12, 12)) == [[2, 1, 0], [1, 0]]


@pytest.mark.parametrize("count", [EXACT, EXACT + 1, 4 * EXACT, 40 * EXACT])
def test_of_many_samples_few_are_looked_at(count: int) -> None:
    rng = random.Random(count)
    jobs = [sorted(rng.randrange(1, 400) for _ in range(count)) for _ in range(3)]
    room = Room(8192, 8192)
    taken = fill(jobs, room)
    check_choice(jobs, taken)
    assert load(jobs, taken) == min(8192, sum(map(sum, jobs)))
