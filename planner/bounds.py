"""Numbers of places that no plan can go below, and what of them is proven how.

:func:`lower_bound_places` is cheap enough for any run. :func:`tight_bound` is for cases of some
hundred steps: to tell a plan that wastes places from a case that has none to spare.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lorafusion.planner.bins import least_bins
from lorafusion.planner.links import Link, Links, make_links
from lorafusion.planner.plan import Limits
from lorafusion.planner.queue import JobQueue

__all__ = ["EFFORT", "Bound", "lower_bound_places", "tight_bound"]

EFFORT = 4.0
"""Deterministic time of CP-SAT, over all numbers of places that are tried; 2 to 6 times as many
seconds."""

INTERVALS = 500
"""Beginnings and ends of intervals that are looked at; every n-th place of longer chains."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What is proven of the number of places. Every number here is a bound of any valid plan.

    Attributes:
        places: The best of them.
        simple: By :func:`lower_bound_places`.
        intervals: By what must stand inside of an interval of places.
        complete: Whether nothing more can be proven this way: the relaxation has a solution in
            ``places`` places, or a plan is known that has no more. False when CP-SAT ran into its
            limit, or was not asked because the case is too large.
    """

    places: int
    simple: int
    intervals: int
    complete: bool


def lower_bound_places(queues: Sequence[JobQueue], limits: Limits) -> int:
    """Places that any plan of all that ``queues`` hold has at least.

    The largest of: all load over the capacity; the bins of all samples, if they could be mixed at
    will; and for each job its steps one after another, each with the bins that it needs alone and
    S·D places from its last to the first of the next.

    Raises:
        PlanError: A sample fits no place; names the job, the step and the sample.
    """
    return _simple(queues, make_links(queues, limits), limits)


def tight_bound(
    queues: Sequence[JobQueue], limits: Limits, *, known: int | None = None, effort: float = EFFORT
) -> Bound:
    """A better bound, by intervals of places and by a relaxation with divisible samples.

    Equal arguments give an equal result with the same version of OR-tools.

    Args:
        queues: As for :func:`lower_bound_places`.
        limits: What plans are made for.
        known: Places of a plan that exists; no more than that is tried.
        effort: Limit of CP-SAT's deterministic time; 0 for none.

    Raises:
        PlanError: A sample fits no place; names the job, the step and the sample.
    """
    jobs = make_links(queues, limits, exact=True)
    simple = _simple(queues, jobs, limits)
    intervals = max(simple, _intervals(jobs, limits.capacity))
    places, complete = intervals, known == intervals
    if effort > 0 and not complete:
        from lorafusion.planner.relaxation import Relaxation

        relaxation = Relaxation(jobs, limits.capacity, effort)
        feasible = relaxation.feasible(places)
        while feasible is False and places != known:
            places += 1
            feasible = True if places == known else relaxation.feasible(places)
        complete = feasible is True
    return Bound(places, simple, intervals, complete)


def _simple(queues: Sequence[JobQueue], jobs: Sequence[Links], limits: Limits) -> int:
    chain = max((job.length for job in jobs), default=0)
    return max(chain, _by_load(jobs, limits.capacity), _by_bins(queues, limits))


def _by_load(jobs: Sequence[Links], capacity: int) -> int:
    """Places for the load of all jobs that are ready no earlier than some place, from there on."""
    best = 0
    for ready in {job.ready_at for job in jobs}:
        links = [link for job in jobs if job.ready_at >= ready for link in job.links]
        # Steps and evals share no place.
        loads = [sum(link.load for link in links if link.train is kind) for kind in (True, False)]
        if links:
            best = max(best, ready + sum(-(-load // capacity) for load in loads))
    return best


def _by_bins(queues: Sequence[JobQueue], limits: Limits) -> int:
    train: Counter[int] = Counter()
    held_out: Counter[int] = Counter()
    for queue in queues:
        for batch in queue.batches:
            train.update(batch.loads)
        for batch in queue.evals.values():
            held_out.update(batch.loads)
    room = limits.capacity - limits.segment_load
    return sum(least_bins(loads, room) for loads in (train, held_out) if loads)


def _intervals(jobs: Sequence[Links], capacity: int) -> int:
    """Places by the load that must stand after the first ``a`` places and before the last ``b``.

    Of a job that is the load that it can neither have done by then, nor still do from there on, at
    full places and with no wait. All of it has to fit between: a + b + load / capacity places.
    It is what finds that many chains of about the same length cannot all begin at once.
    """
    longest = max((job.length for job in jobs), default=0)
    at = range(0, longest + 1, -(-(longest + 1) // INTERVALS))
    inside = [[0] * len(at) for _ in at]
    for job in jobs:
        head = _most_load(job, at)
        tail = _most_load(_reversed(job), at)
        load = job.load
        for row, done in zip(inside, head, strict=True):
            for index, later in enumerate(tail):
                if done + later >= load:
                    break
                row[index] += load - done - later
    return max(
        (
            a + b + -(-load // capacity)
            for a, row in zip(at, inside, strict=True)
            for b, load in zip(at, row, strict=True)
            if load
        ),
        default=0,
    )


def _most_load(job: Links, at: Sequence[int]) -> list[int]:
    """For each number of places: the most load that the job can have in that many first ones."""
    starts = job.starts()
    most: list[int] = []
    before, index = 0, 0  # load of the links in front of index, all of them done
    for places in at:
        while index + 1 < len(starts) and starts[index + 1] <= places:
            before += job.links[index].load
            index += 1
        most.append(before + (_begun(job.links[index], places - starts[index]) if starts else 0))
    return most


def _begun(link: Link, places: int) -> int:
    """The most load of it in that many places, which are too few for all below its bins."""
    most = link.load if places >= link.bins else link.load - link.least
    return min(most, link.most * max(0, places))


def _reversed(job: Links) -> Links:
    """The job from its end: the gap before a link is the one that stood behind it."""
    gaps = [link.gap for link in job.links[1:]] + [1]
    links = [replace(link, gap=gap) for link, gap in zip(job.links, gaps, strict=False)]
    return Links(0, tuple(reversed(links)))
