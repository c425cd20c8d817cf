"""Places while they are worked on: which positions of a job's open entry stand where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorafusion.planner.chain import Chain
from lorafusion.planner.plan import Limits, Place, PlaceKind, Plan, PlannedSegment
from lorafusion.planner.queue import Batch

__all__ = ["Draft", "DraftPlace", "to_plan"]


@dataclass(frozen=True, slots=True)
class DraftPlace:
    """One place.

    Attributes:
        kind: As :class:`lorafusion.planner.plan.Place`.
        taken: Number of the job -> ascending positions in the batch of the entry that it is at.
    """

    kind: PlaceKind
    taken: Mapping[int, tuple[int, ...]]


Draft = Sequence[DraftPlace]


def to_plan(draft: Draft, chains: Sequence[Chain], limits: Limits) -> Plan:
    """The finished plan."""
    entry_of = [0] * len(chains)
    placed = [0] * len(chains)
    places: list[Place] = []
    for place in draft:
        segments: list[PlannedSegment] = []
        completes: list[tuple[str, int]] = []
        for job in sorted(place.taken):
            batch = chains[job].entries[entry_of[job]].batch
            segment = _segment(chains[job].queue.name, batch, place.taken[job])
            segments.append(segment)
            placed[job] += len(segment.samples)
            if placed[job] == len(batch.samples):
                completes.append((segment.job, segment.step))
                entry_of[job] += 1
                placed[job] = 0
        places.append(Place(place.kind, tuple(segments), tuple(completes)))
    alone = tuple(chain.queue.name for chain in chains if chain.alone)
    return Plan(limits, tuple(places), alone)


def _segment(job: str, batch: Batch, positions: Sequence[int]) -> PlannedSegment:
    def at(column: Sequence[int]) -> tuple[int, ...]:
        return tuple(column[position] for position in positions)

    # One tuple where the numbers are the same, as they are when loads are tokens.
    lengths = at(batch.lengths)
    labelled = lengths if batch.labelled is batch.lengths else at(batch.labelled)
    loads = lengths if batch.loads is batch.lengths else at(batch.loads)
    return PlannedSegment(job, batch.step, at(batch.samples), lengths, labelled, loads)
