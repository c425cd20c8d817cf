"""Fill one place to the last unit: exact subset sums over the samples that may stand there.

A set of sums is an integer whose bit ``s`` is set when ``s`` can be reached, so that adding a
sample to it is one shift and one "or" (0.3 µs for 8,192 bits). The most urgent job takes the most
load that still lets the others fill the place; of equal sums, the one with the largest samples, as
small ones are what later places are topped up with.

Cost: at most ``EXACT`` samples of a job and about four places' worth of jobs are looked at, however
many there are, so a place costs a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Room", "fill"]

EXACT = 48
"""Samples of one job that a subset sum is taken over: they reach nearly every sum."""

CANDIDATES = 400
"""Amounts of the first job that are tried, from the largest; the first few suffice in practice."""


@dataclass(frozen=True, slots=True)
class Room:
    """What one place offers.

    Attributes:
        capacity: The most load.
        target: How much the others fill it up to, where the first job takes less; at most
            ``capacity``. A lower one makes places evener, and more of them.
        segment: Load that each job adds beside its samples.
        least: The least that the first job takes, where it can, even if the place is less full.
        most: The most that it should take, where that is something.
    """

    capacity: int
    target: int
    segment: int = 0
    least: int = 1
    most: int | None = None


def fill(jobs: Sequence[Sequence[int]], room: Room) -> list[list[int]]:
    """Choose samples for a place.

    Args:
        jobs: Loads of the samples of each job in ascending order, the most urgent job first. At
            least one sample of the first fits.
        room: What the place offers.

    Returns:
        For each job that takes part, and maybe a prefix of ``jobs`` alone, the indices of the
        samples it takes, in descending order.
    """
    taken: list[list[int]] = []
    # A job that leaves half of the place free goes in whole: the others can fill the rest anyhow.
    while len(taken) < len(jobs):
        loads = jobs[len(taken)]
        load = sum(loads) + room.segment
        if 2 * load > room.target:
            break
        taken.append(list(range(len(loads) - 1, -1, -1)))
        room = Room(room.target - load, room.target - load, room.segment, least=0)
    rest = jobs[len(taken) :]
    if rest:
        taken += _fill_exactly(rest, room)
    return taken


def _fill_exactly(jobs: Sequence[Sequence[int]], room: Room) -> list[list[int]]:
    first = _without_sure(jobs[0], room.target - room.segment)
    sure = list(range(len(jobs[0]) - 1, first - 1, -1))
    load = sum(jobs[0][first:])
    used = load + (room.segment if sure else 0)
    left = Room(
        room.capacity - used,
        room.target - used,
        room.segment,
        room.least - load,
        None if room.most is None else max(0, room.most - load),
    )
    pools = [_Pool(jobs[0], first, room.segment if not sure else 0)]
    wanted, found = 3 * max(left.target, 1), 0
    for loads in jobs[1:]:
        if found >= wanted:
            break
        pool = _Pool(loads, len(loads), room.segment)
        found += pool.load
        pools.append(pool)
    taken = _choose(pools, left)
    return [sure + taken[0], *taken[1:]]


def _without_sure(loads: Sequence[int], room: int) -> int:
    """How many of the smallest samples are left to choose among; those above go in for sure.

    Where a job has many samples, its largest go in unseen for as long as the ``EXACT`` that follow
    do not fill the room.
    """
    end = len(loads)
    if end <= EXACT:
        return end
    window = sum(loads[end - EXACT : end])
    while end > EXACT and window < room:
        end -= 1
        room -= loads[end]
        window += loads[end - EXACT] - loads[end]
    return end


class _Pool:
    """The samples of one job that are looked at, and the sums they reach."""

    def __init__(self, loads: Sequence[int], end: int, segment: int) -> None:
        """Look at the samples before ``end``: all, or the larger half and some of all sizes."""
        self.indices: Sequence[int] = range(end)
        if end > EXACT:
            half = EXACT // 2
            step = (end - half) / half
            self.indices = [*(int(i * step) for i in range(half)), *range(end - half, end)]
        self.loads = [loads[index] for index in self.indices]
        self.load = sum(self.loads)
        self.segment = segment

    def sums(self, mask: int) -> list[int]:
        """Sums of the first 0, 1, 2, ... samples."""
        sums = [1]
        reached = 1
        for load in self.loads:
            reached |= (reached << load) & mask
            sums.append(reached)
        return sums

    def added_to(self, reached: int, mask: int) -> int:
        """``reached`` and what it becomes with some of the job's samples."""
        with_none = reached << self.segment
        more = 0
        for load in self.loads:
            more |= ((more | with_none) << load) & mask
        return reached | more

    def pick(self, sums: Sequence[int], amount: int) -> list[int]:
        """Indices of samples of exactly ``amount``, the largest first; ``amount`` is reached."""
        picked: list[int] = []
        for position in range(len(self.loads) - 1, -1, -1):
            load = self.loads[position]
            if amount >= load and sums[position] >> (amount - load) & 1:
                picked.append(self.indices[position])
                amount -= load
        assert amount == 0, "an amount that the samples do not reach"
        return picked


def _choose(pools: Sequence[_Pool], room: Room) -> list[list[int]]:
    mask = (1 << (room.capacity + 1)) - 1
    rests = [1]  # what the jobs from k on reach, k descending
    for pool in reversed(pools[1:]):
        rests.append(pool.added_to(rests[-1], mask))
    first, rest = pools[0], rests.pop()
    sums = first.sums(mask >> first.segment)
    amount, filled = _first_amount(sums[-1], rest, room, first.segment)
    taken = [first.pick(sums, amount)]
    filled -= amount + (first.segment if amount else 0)
    for pool in pools[1:]:
        if not filled:
            break
        rest = rests.pop()
        sums = pool.sums((1 << (filled + 1)) - 1)
        amount = _most_beside(sums[-1], rest, filled, pool.segment)
        taken.append(pool.pick(sums, amount))
        filled -= amount + (pool.segment if amount else 0)
    assert filled == 0, "a sum that the jobs do not reach"
    return taken


def _first_amount(sums: int, rest: int, room: Room, segment: int) -> tuple[int, int]:
    """What the first job takes, and to how much the place is filled then."""
    if room.most is not None and (less := sums & ((1 << (room.most + 1)) - 1)) > 1:
        sums = less
    best, best_filled = 0, -1
    beside = rest.bit_length() - 1
    for _ in range(CANDIDATES):
        amount = sums.bit_length() - 1
        own = amount + segment if amount else 0
        if best_filled >= 0 and (amount < room.least or own + beside <= best_filled):
            break
        goal = max(own, room.target)
        filled = own + (rest & ((1 << (goal - own + 1)) - 1)).bit_length() - 1
        if filled > best_filled:
            best, best_filled = amount, filled
        if filled == goal or amount == 0:
            break
        sums ^= 1 << amount
    return best, best_filled


def _most_beside(sums: int, rest: int, filled: int, segment: int) -> int:
    """The most of this job's sums with which ``rest`` makes up ``filled`` exactly."""
    while True:
        amount = sums.bit_length() - 1
        used = amount + segment if amount else 0
        if used <= filled and rest >> (filled - used) & 1:
            return amount
        assert amount > 0, "a sum that the jobs do not reach"
        sums ^= 1 << amount
