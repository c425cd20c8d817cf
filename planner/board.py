"""A draft by steps instead of by places, for what moves samples inside the windows of their steps.

The window of a step reaches from S·D places after the step before it to S·D places before the step
behind it, so no move inside it breaks the order. Evals stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lorafusion.planner.chain import Chain, Entry
from lorafusion.planner.draft import Draft, DraftPlace
from lorafusion.planner.plan import Limits, PlaceKind

__all__ = ["Board", "Stay", "Where", "to_draft"]

Where = Mapping[int, Sequence[int]]
"""Place -> positions in its batch of what stands there."""


@dataclass(slots=True)
class Stay:
    """Where one step or eval of a job stands.

    Attributes:
        job: Number of the job.
        index: Of the entry in the job's chain.
        entry: The step or eval.
        at: Where its samples stand; not empty.
        order: Positions of those samples, the largest load first. Others of the step may stand in
            the next window.
    """

    job: int
    index: int
    entry: Entry
    at: Where
    order: Sequence[int]

    @property
    def first(self) -> int:
        """First place that it stands in."""
        return min(self.at)

    @property
    def last(self) -> int:
        """Last place that it stands in."""
        return max(self.at)

    @property
    def movable(self) -> bool:
        """Whether its samples may move."""
        return self.entry.kind == "train"

    @property
    def bins(self) -> int:
        """At least that many places hold it."""
        return self.entry.bins if len(self.order) == len(self.entry.order) else 1

    def load(self, positions: Sequence[int]) -> int:
        """Load of some of its samples."""
        loads = self.entry.batch.loads
        return sum([loads[position] for position in positions])


class Board:
    """Who stands where.

    Attributes:
        chains: What the jobs have to do.
        limits: What the draft was made for.
        kinds: Kind of each place of the draft.
        loads: Load of each place, with what a place that holds anything takes.
        stays: Of each job, the entries that the draft holds, in order.
    """

    def __init__(self, draft: Draft, chains: Sequence[Chain], limits: Limits) -> None:
        self.chains = chains
        self.limits = limits
        self.kinds: list[PlaceKind] = [place.kind for place in draft]
        self.loads = [0] * len(draft)
        self.stays: list[list[Stay]] = [[] for _ in chains]
        self._jobs: list[set[int]] = [set() for _ in draft]
        self._some_alone = any(chain.alone for chain in chains)
        for (job, index), at in _by_entry(draft, chains).items():
            entry = chains[job].entries[index]
            here = {position for positions in at.values() for position in positions}
            order = [position for position in reversed(entry.order) if position in here]
            stay = Stay(job, index, entry, at, order)
            self.stays[job].append(stay)
            self._add(stay)

    def where(self) -> Iterator[tuple[Stay, int, Sequence[int]]]:
        """All steps and evals, with each place they stand in, and what of them stands there."""
        for stays in self.stays:
            for stay in stays:
                for place, positions in stay.at.items():
                    yield stay, place, positions

    def movable(self) -> list[Stay]:
        """Steps that may move, in the order in which they begin."""
        stays = [stay for of_job in self.stays for stay in of_job if stay.movable]
        return sorted(stays, key=lambda stay: (stay.first, stay.job))

    def next(self, stay: Stay) -> Stay | None:
        """The entry of the same job behind it, where the draft holds one."""
        stays = self.stays[stay.job]
        return stays[stay.index + 1] if stay.index + 1 < len(stays) else None

    def first_allowed(self, stay: Stay) -> int:
        """First place in which the order lets it stand."""
        if not stay.index:
            return self.chains[stay.job].queue.ready_at
        before = self.stays[stay.job][stay.index - 1]
        return before.last + self.gap(before)

    def last_allowed(self, stay: Stay) -> int:
        """Last place in which the order lets it stand."""
        behind = self.next(stay)
        if behind is not None:
            return behind.first - self.gap(stay)
        # What follows in the next window must not wait longer.
        return stay.last if self.goes_on(stay) else len(self.loads) - 1

    def goes_on(self, stay: Stay) -> bool:
        """Whether its job has something behind it that the draft does not hold."""
        chain = self.chains[stay.job]
        later = chain.queue.remaining_steps > len(chain.queue.batches)
        return (
            later or stay.index + 1 < len(chain.entries) or len(stay.order) < len(stay.entry.order)
        )

    def gap(self, stay: Stay) -> int:
        """Least number of places from its last to the first of the entry behind it."""
        return self.chains[stay.job].gap(stay.index, self.limits)

    def open_places(self, job: int, first: int, last: int) -> list[int]:
        """Places from ``first`` to ``last`` in which the job may train."""
        places = range(first, last + 1)
        if not self._some_alone:
            return [place for place in places if self.kinds[place] != "eval"]
        return [place for place in places if self._is_open(place, job)]

    def _is_open(self, place: int, job: int) -> bool:
        others = self._jobs[place] - {job}
        alone = self.chains[job].alone or any(self.chains[other].alone for other in others)
        return self.kinds[place] != "eval" and not (others and alone)

    def put(self, *moves: tuple[Stay, Where]) -> None:
        """Move steps. All leave first: one may come to stand where another of its job stood."""
        for stay, _ in moves:
            for place, positions in stay.at.items():
                self.loads[place] = self.without(place, stay.job, stay.load(positions))
                self._jobs[place].discard(stay.job)
        for stay, at in moves:
            stay.at = at
            self._add(stay)

    def without(self, place: int, job: int, load: int) -> int:
        """Load of a place when a job takes its samples, of this load, away."""
        if self._jobs[place] == {job}:
            return 0
        return self.loads[place] - load - self.limits.segment_load

    def _add(self, stay: Stay) -> None:
        for place, positions in stay.at.items():
            before = self.loads[place] or self.limits.place_load
            self.loads[place] = before + self.limits.segment_load + stay.load(positions)
            self._jobs[place].add(stay.job)

    def draft(self) -> list[DraftPlace]:
        """The places as they are now."""
        return to_draft(self.kinds, ((stay.job, stay.at) for stays in self.stays for stay in stays))


def to_draft(kinds: Sequence[PlaceKind], taken: Iterable[tuple[int, Where]]) -> list[DraftPlace]:
    """Places of these kinds, from where the steps and evals of the jobs stand.

    A place that is no eval is a train place or a no-op, as something stands there or not.
    """
    places: list[dict[int, tuple[int, ...]]] = [{} for _ in kinds]
    for job, at in taken:
        for place, positions in at.items():
            places[place][job] = tuple(sorted(positions))
    return [
        DraftPlace(kind if kind == "eval" else "train" if jobs else "noop", jobs)
        for kind, jobs in zip(kinds, places, strict=True)
    ]


def _by_entry(
    draft: Draft, chains: Sequence[Chain]
) -> dict[tuple[int, int], dict[int, tuple[int, ...]]]:
    """Job and entry -> where it stands."""
    found: dict[tuple[int, int], dict[int, tuple[int, ...]]] = {}
    index, placed = [0] * len(chains), [0] * len(chains)
    for place, drafted in enumerate(draft):
        for job, positions in drafted.taken.items():
            found.setdefault((job, index[job]), {})[place] = positions
            placed[job] += len(positions)
            if placed[job] == len(chains[job].entries[index[job]].order):
                index[job] += 1
                placed[job] = 0
    return found
