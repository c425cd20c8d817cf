"""Bin completion: fill one bin after another around the largest sample that is left.

Which sums a set of samples can reach is one big integer, a bit per sum: a sample is a shift and an
or. Those of all suffixes of the sorted samples say at each turn whether a wanted sum can still be
reached, so that only subsets that exist are walked. After Korf (An improved algorithm for optimal
bin packing, 2003), with sums in place of his sets of undominated ones.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

__all__ = ["SearchLimit", "fits", "fullest", "fullest_first"]


class SearchLimit:
    """Counts work down, so that a search ends at the same point on every machine."""

    def __init__(self, work: int) -> None:
        self._left = work

    def spend(self, work: int) -> None:
        """Take ``work`` off."""
        self._left -= work

    @property
    def reached(self) -> bool:
        """True when nothing is left."""
        return self._left <= 0


def fullest(loads: Sequence[int], room: int) -> int:
    """The largest sum of some of ``loads`` that is at most ``room``."""
    return _reach(loads, room)[0].bit_length() - 1


def fullest_first(loads: Sequence[int], room: int) -> int:
    """Bins taken when each is filled as full as can be around the largest sample left.

    Args:
        loads: Descending, none above ``room``.
        room: What a bin holds.
    """
    bins, rest = 0, list(loads)
    while rest:
        rest = next(_completions(rest, 0, room, SearchLimit(0)))
        bins += 1
    return bins


def fits(loads: Sequence[int], room: int, bins: int, limit: SearchLimit) -> bool | None:
    """Whether ``loads`` (descending, none above ``room``) fit into ``bins`` bins; None: not known.

    The room that all bins may leave empty is known beforehand, so a bin that leaves more than what
    is left of it ends its branch.
    """
    failed: set[tuple[int, ...]] = set()
    path = [(tuple(loads), _branches(loads, room, bins, limit))]
    while path:
        rest = next(path[-1][1], None)
        if limit.reached:
            return None
        if rest is None:
            failed.add(path.pop()[0])
        elif not rest:
            return True
        elif (key := tuple(rest)) not in failed:
            path.append((key, _branches(rest, room, bins - len(path), limit)))
    return False


def _branches(
    loads: Sequence[int], room: int, bins: int, limit: SearchLimit
) -> Iterator[list[int]]:
    waste = bins * room - sum(loads)
    return _completions(loads, max(0, room - waste), room, limit)


def _completions(
    loads: Sequence[int], low: int, high: int, limit: SearchLimit
) -> Iterator[list[int]]:
    """What each bin with ``loads[0]`` and a sum of low to high leaves, the fullest bins first."""
    first, others = loads[0], loads[1:]
    reach = _reach(others, high - first)
    limit.spend(len(loads) * (1 + high // 8192))  # a shift of 8192 bits is 0.3 microseconds
    low = max(low - first, 0)
    sums = reach[0] >> low
    while sums:
        top = sums.bit_length() - 1
        sums ^= 1 << top
        for taken in _subsets(others, low + top, reach, limit):
            limit.spend(len(others) // 8 + len(taken) ** 2 // 4)  # what follows, in microseconds
            gone = set(taken)
            rest = [load for index, load in enumerate(others) if index not in gone]
            if not _dominated([others[index] for index in taken], rest, high - first - low - top):
                yield rest


def _dominated(taken: Sequence[int], rest: Sequence[int], slack: int) -> bool:
    """Whether a larger load of ``rest`` fits instead of one or two that were taken, or beside them.

    Such a bin need not be tried: what packs the rest after it packs that after the larger one too
    (Martello and Toth's dominance, for one load against at most two). It spares 60-90% of the work.
    """
    ascending = rest[::-1]
    pairs = {one + other for index, one in enumerate(taken) for other in taken[index + 1 :]}
    # A pair goes for one load of the same sum; a single load or none only for a larger one.
    at_least = pairs if not slack else pairs | {load + 1 for load in taken} | {1}
    for least in at_least:
        index = bisect_left(ascending, least)
        most = least + slack if least in pairs else least - 1 + slack
        if index < len(ascending) and ascending[index] <= most:
            return True
    return False


def _reach(loads: Sequence[int], high: int) -> list[int]:
    """Entry i: the sums of subsets of ``loads[i:]`` up to ``high``, as bits."""
    mask = (1 << (high + 1)) - 1
    reach = [1]
    for load in reversed(loads):
        reach.append((reach[-1] | reach[-1] << load) & mask)
    reach.reverse()
    return reach


def _subsets(
    loads: Sequence[int], total: int, reach: Sequence[int], limit: SearchLimit
) -> Iterator[list[int]]:
    """Positions of each subset of ``loads`` (descending) that sums to ``total``, largest first.

    Of equal loads the first are taken, so that no two subsets hold the same loads.
    """
    taken: list[int] = []
    index = 0
    while True:
        if not total:
            yield list(taken)
        elif index < len(loads) and reach[index] >> total & 1:
            limit.spend(1)
            if loads[index] <= total and reach[index + 1] >> (total - loads[index]) & 1:
                taken.append(index)
                total -= loads[index]
                index += 1
            else:
                index = _next_smaller(loads, index)
            continue
        if not taken:
            return
        index = taken.pop()
        total += loads[index]
        index = _next_smaller(loads, index)


def _next_smaller(loads: Sequence[int], index: int) -> int:
    load = loads[index]
    while index < len(loads) and loads[index] == load:
        index += 1
    return index
