"""How many places the samples of one step need when nothing shares them: bin packing, bounded.

Most steps are settled by the two cheap ends, a sum below and best fit above. Where they differ,
Martello and Toth's bound L2 and Fekete and Schepers' dual feasible functions raise the lower end,
and :mod:`lorafusion.planner.completion` fills bins one after another to close what is left.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

from lorafusion.errors import PlanError
from lorafusion.planner.completion import SearchLimit, fits, fullest_first

__all__ = ["WORK", "count_bins", "least_bins"]

WORK = 5_000
"""Default limit of a search, in steps of about a microsecond. Of 4,000 steps of 4 to 64 log-normal
samples it leaves open: none at a capacity of 6144 and medians of 400 to 1200, 0.3% at 4096, and
2-4% at medians of a sixth to a half of the capacity. Ten times the work leaves 0.1% and 1%."""

_COUNTED = range(1, 5)
"""Samples per bin that the dual feasible functions tell apart; 5 to 16 settle no more than 0.7% of
the steps with about two samples per bin, and next to none of the others."""


def count_bins(
    loads: Sequence[int],
    capacity: int,
    *,
    segment_load: int = 0,
    work: int = WORK,
    where: str = "a step",
) -> tuple[int, int]:
    """Least number of places for the samples of one step of one job, as (lower, upper).

    The two are equal unless the search ran into its limit. Equal arguments give equal results.

    Args:
        loads: Load of each sample.
        capacity: The most load of a place.
        segment_load: Load that the job adds to each place it stands in.
        work: Limit of the search; 0 for none at all.
        where: The job and step, as an error names them.

    Raises:
        PlanError: A sample fits no place.
    """
    room = capacity - segment_load
    if not loads:
        return 0, 0
    _check(loads, room, where)
    lower = -(-sum(loads) // room)
    sorted_loads = sorted(loads, reverse=True)
    upper = best_fit(sorted_loads, room)
    if lower < upper:
        lower = least_bins(Counter(loads), room)
    # A bin costs as much as there are samples: of thousands, one bin more or less does not matter.
    if lower < upper and upper * len(loads) <= 10 * work:
        upper = min(upper, fullest_first(sorted_loads, room))
    limit = SearchLimit(work)
    while lower < upper:
        found = fits(sorted_loads, room, lower, limit)
        if found is None:
            break
        if found:
            upper = lower
        else:
            lower += 1
    return lower, upper


def least_bins(counts: Counter[int], room: int) -> int:
    """A lower bound without a search, for any number of samples.

    Args:
        counts: How many samples there are of each load, none above ``room``.
        room: What a bin holds.
    """
    return max(_martello_toth(counts, room), *(_counting(counts, room, k) for k in _COUNTED))


def best_fit(loads: Sequence[int], room: int) -> int:
    """Bins that best fit takes for ``loads`` in the order given."""
    rooms: list[int] = []  # left in each open bin, ascending
    full = 0
    for load in loads:
        index = bisect_left(rooms, load)
        left = (rooms.pop(index) if index < len(rooms) else room) - load
        if left:
            insort(rooms, left)
        else:
            full += 1
    return full + len(rooms)


def _martello_toth(counts: Counter[int], room: int) -> int:
    """L2 of Martello and Toth (Lower bounds and reduction procedures for bin packing, 1990).

    For a threshold a: loads over room - a stand without any of at least a; loads over half the room
    stand in bins of their own; those between a and half the room go where those leave room.
    """
    loads = sorted(counts)
    number = [0, *accumulate(counts[load] for load in loads)]
    weight = [0, *accumulate(counts[load] * load for load in loads)]
    half = bisect_right(loads, room // 2)  # first index over half the room
    best = 0
    for index in range(half + 1):
        threshold = loads[index] if index < half else room // 2 + 1
        lone = max(half, bisect_right(loads, room - threshold))
        left = (number[lone] - number[half]) * room - (weight[lone] - weight[half])
        over = weight[half] - weight[index] - left
        best = max(best, number[-1] - number[half] + max(0, -(-over // room)))
    return best


def _counting(counts: Counter[int], room: int, most: int) -> int:
    """Sum of the dual feasible function u(k) of Fekete and Schepers (2001), rounded up, k = most.

    A load above 1/(k+1) of the room counts as 1/k of a bin, one above 2/(k+1) as 2/k, and so on.
    """
    total = 0
    for load, count in counts.items():
        parts, rest = divmod((most + 1) * load, room)
        total += count * (room * parts if rest else most * load)
    return -(-total // (most * room))


def _check(loads: Sequence[int], room: int, where: str) -> None:
    if max(loads) > room or min(loads) < 1:
        position = next(i for i, load in enumerate(loads) if not 1 <= load <= room)
        raise PlanError(
            f"{where}: the sample at position {position} has a load of {loads[position]}; a place "
            f"holds {max(0, room)} of one job, and a load is at least 1. Raise the capacity or "
            "lower the job's max_seq_len."
        )
