"""A job as the bounds see it: its steps and evals as links of a chain, with nothing of how to plan.

Used by :mod:`lorafusion.planner.bounds` alone, and not by the scheduler: what says how good plans
are shares no code with what makes them but the bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorafusion.planner.bins import WORK, count_bins
from lorafusion.planner.completion import fullest
from lorafusion.planner.plan import Limits
from lorafusion.planner.queue import Batch, JobQueue

__all__ = ["Link", "Links", "make_links"]

EXACT = 200_000
"""Limit of the bins of a step where they are to be exact; see ``WORK`` of ``bins.py``."""


@dataclass(frozen=True, slots=True)
class Link:
    """One step or eval.

    Attributes:
        bins: At least that many places hold some of it.
        load: Of its samples, and of its segments in that many places.
        most: The most load of it that a place can hold.
        least: The least load of it that a place can hold.
        gap: Its first place is at least that many after the last of the link before.
        train: A step, no eval.
    """

    bins: int
    load: int
    most: int
    least: int
    gap: int
    train: bool = True


@dataclass(frozen=True, slots=True)
class Links:
    """What is left of one job.

    Attributes:
        ready_at: First place that it may stand in.
        links: In the order in which they must stand.
    """

    ready_at: int
    links: tuple[Link, ...]

    @property
    def length(self) -> int:
        """Places that no plan with this job can go below; 0 when nothing is left of it."""
        return self.starts()[-1] + self.links[-1].bins if self.links else 0

    @property
    def load(self) -> int:
        """Of all links."""
        return sum(link.load for link in self.links)

    def starts(self) -> tuple[int, ...]:
        """First place that each link can begin in."""
        place, starts = self.ready_at, list[int]()
        for index, link in enumerate(self.links):
            if index:
                place += self.links[index - 1].bins - 1 + link.gap
            starts.append(place)
        return tuple(starts)

    def ends(self, places: int) -> tuple[int, ...]:
        """Last place that each link can end in, in a plan of ``places`` places."""
        place, ends = places - 1, list[int]()
        for index in reversed(range(len(self.links))):
            ends.append(place)
            place -= self.links[index].bins - 1 + self.links[index].gap
        ends.reverse()
        return tuple(ends)


def make_links(
    queues: Sequence[JobQueue], limits: Limits, *, exact: bool = False
) -> tuple[Links, ...]:
    """The links of each queue.

    Args:
        queues: What is to be planned.
        limits: What for.
        exact: Search long for the bins, and for what fills a place; else most is a simple limit.

    Raises:
        PlanError: A sample fits no place; names the job, the step and the sample.
    """
    return tuple(_links(queue, limits, exact) for queue in queues)


def _links(queue: JobQueue, limits: Limits, exact: bool) -> Links:
    entries = [(batch, True) for batch in queue.batches]
    entries += [(batch, False) for batch in queue.evals.values()]
    entries.sort(key=lambda entry: (entry[0].step, not entry[1]))
    links: list[Link] = []
    gap = 1
    for batch, train in entries:
        where = f"job {queue.name!r}, {'step' if train else 'eval after step'} {batch.step}"
        links.append(_link(batch, limits, where, exact=exact, gap=gap, train=train))
        gap = limits.distance if train else 1
    return Links(queue.ready_at, tuple(links))


def _link(batch: Batch, limits: Limits, where: str, *, exact: bool, gap: int, train: bool) -> Link:
    segment = limits.segment_load
    work = EXACT if exact else WORK
    bins, _ = count_bins(batch.loads, limits.capacity, segment_load=segment, work=work, where=where)
    room = limits.capacity - segment
    most = fullest(batch.loads, room) if exact else min(room, batch.load)
    load = batch.load + bins * segment
    return Link(bins, load, most + segment, min(batch.loads) + segment, gap, train)
