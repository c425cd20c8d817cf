"""Bins of a step, against every packing of a few samples, and against packings known to be full."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafusion.errors import PlanError
from lorafusion.planner.bins import best_fit, count_bins, least_bins
from lorafusion.planner.case import Case
from lorafusion.planner.completion import SearchLimit, fits, fullest_first

CASES = sorted((Path(__file__).parent / "cases").glob("*.json"))
ROOM = 24
loads_of_a_step = st.lists(st.integers(1, ROOM), min_size=1, max_size=9)


def brute_force(loads: list[int], room: int) -> int:
    """Fewest bins, by every way to fill the bin that holds the first sample left."""

    @cache
    def fewest(left: int) -> int:
        if not left:
            return 0
        first = left & -left
        others = left ^ first
        best, subset = len(loads), others
        while True:
            if sums[subset | first] <= room:
                best = min(best, 1 + fewest(others ^ subset))
            if not subset:
                return best
            subset = (subset - 1) & others

    everything = range(1 << len(loads))
    sums = [sum(load for i, load in enumerate(loads) if mask >> i & 1) for mask in everything]
    return fewest(everything[-1])


def cut_bins(rng: random.Random, bins: int, pieces: int) -> list[int]:
    """Samples that fill ``bins`` bins of 1000 to the last token."""
    loads: list[int] = []
    for _ in range(bins):
        cuts = sorted(rng.sample(range(1, 1000), pieces - 1))
        loads += [b - a for a, b in zip([0, *cuts], [*cuts, 1000], strict=True)]
    rng.shuffle(loads)
    return loads


@given(loads_of_a_step)
def test_equals_brute_force(loads: list[int]) -> None:
    fewest = brute_force(loads, ROOM)
    assert count_bins(loads, ROOM) == (fewest, fewest)


@given(loads_of_a_step, st.integers(0, 40))
def test_a_limited_search_stays_around_brute_force(loads: list[int], work: int) -> None:
    lower, upper = count_bins(loads, ROOM, work=work)
    assert lower <= brute_force(loads, ROOM) <= upper


@given(loads_of_a_step)
def test_each_part_keeps_to_its_side(loads: list[int]) -> None:
    fewest = brute_force(loads, ROOM)
    descending = sorted(loads, reverse=True)
    assert least_bins(Counter(loads), ROOM) <= fewest
    assert best_fit(descending, ROOM) >= fewest
    assert fullest_first(descending, ROOM) >= fewest
    for bins in range(1, len(loads) + 1):
        assert fits(descending, ROOM, bins, SearchLimit(10**9)) is (bins >= fewest)


@given(loads_of_a_step, st.integers(1, 10))
def test_the_segment_takes_room_in_every_bin(loads: list[int], segment_load: int) -> None:
    expected = count_bins(loads, ROOM)
    assert count_bins(loads, ROOM + segment_load, segment_load=segment_load) == expected


@pytest.mark.parametrize("seed", range(12))
def test_full_bins_are_found(seed: int) -> None:
    """Best fit alone takes a bin more on each of these."""
    loads = cut_bins(random.Random(seed), 4 + seed % 5, 4 + seed % 3)
    bins = sum(loads) // 1000
    assert best_fit(sorted(loads, reverse=True), 1000) > bins
    assert count_bins(loads, 1000) == (bins, bins)


@pytest.mark.parametrize(
    ("loads", "bins", "by"),
    [
        ([51] * 6, 6, "one a bin, though the sum is 4 bins"),
        ([34] * 64, 32, "two a bin, though the sum is 22 bins"),
        ([26] * 30, 10, "three a bin, though the sum is 8 bins"),
        ([70] * 4 + [25] * 4 + [31] * 3, 5, "31 fits beside no 70"),
    ],
)
def test_bounds_beyond_the_sum(loads: list[int], bins: int, by: str) -> None:
    assert least_bins(Counter(loads), 100) == bins, by
    assert count_bins(loads, 100, work=0) == (bins, bins), by


def test_a_search_can_prove_that_a_bin_is_missing() -> None:
    loads = [40, 40, 40, 35, 35, 35, 25, 25, 25]  # sums of 100: 40+35+25 alone, so three bins ...
    assert count_bins(loads, 100) == (3, 3)
    loads = [44, 41, 38, 35, 33, 31, 29, 26, 23]  # ... and here no three of them reach 100
    assert least_bins(Counter(loads), 100) == 3
    assert brute_force(loads, 100) == 4
    assert count_bins(loads, 100) == (4, 4)


def test_the_limit_leaves_a_gap_and_more_work_closes_it() -> None:
    rng = random.Random(2)
    loads = cut_bins(rng, 14, 3)
    lower, upper = count_bins(loads, 1000, work=10)
    assert lower == 14 < upper
    assert count_bins(loads, 1000, work=200_000) == (14, 14)


def test_nearly_every_step_of_the_cases_is_settled() -> None:
    steps, open_ = 0, 0
    for file in CASES:
        case = Case.read(file)
        for queue in case.queues():
            for batch in queue.batches:
                lower, upper = count_bins(batch.loads, case.capacity_tokens)
                steps += 1
                open_ += lower < upper
    assert steps > 5000
    assert open_ <= 5


def test_a_batch_of_thousands() -> None:
    rng = random.Random(0)
    loads = [rng.randrange(100, 2000) for _ in range(5000)]
    lower, upper = count_bins(loads, 4096)
    assert lower == -(-sum(loads) // 4096)
    assert lower <= upper <= lower + 2


def test_nothing_needs_nothing() -> None:
    assert count_bins([], 10) == (0, 0)


@pytest.mark.parametrize(
    ("loads", "segment_load", "message"),
    [
        ([3, 11], 0, "job 'a', step 2: the sample at position 1 has a load of 11.* holds 10"),
        ([3, 9], 2, "position 1 has a load of 9; a place holds 8"),
        ([3, 9], 12, "position 0 has a load of 3; a place holds 0"),
        ([3, 0], 0, "position 1 has a load of 0"),
    ],
)
def test_a_sample_that_fits_no_place(loads: list[int], segment_load: int, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        count_bins(loads, 10, segment_load=segment_load, where="job 'a', step 2")
