"""Valid plans that no planner would make."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from lorafusion.planner.plan import Limits, Place, PlaceKind, Plan, PlannedSegment
from lorafusion.planner.queue import Batch, JobQueue


@dataclass
class _Line:
    """One job's work in order, and from where on it may go on."""

    queue: JobQueue
    entries: list[tuple[PlaceKind, Batch]]
    ready: int
    taken: set[int] = field(default_factory=set[int])

    @classmethod
    def of(cls, queue: JobQueue) -> _Line:
        entries: list[tuple[PlaceKind, Batch]] = [("train", batch) for batch in queue.batches]
        entries += [("eval", batch) for batch in queue.evals.values()]
        entries.sort(key=lambda entry: (entry[1].step, entry[0] == "eval"))
        return cls(queue, entries, queue.ready_at)

    def left(self) -> list[int]:
        """Positions in the batch that it is at."""
        return [at for at in range(len(self.entries[0][1].samples)) if at not in self.taken]


def random_window(
    queues: Sequence[JobQueue], limits: Limits, rng: random.Random, places: int
) -> Plan:
    """Up to ``places`` places: any jobs that may go on, any of their samples, or nothing."""
    lines = [_Line.of(queue) for queue in queues]
    made: list[Place] = []
    while len(made) < places and any(line.entries for line in lines):
        able = [line for line in lines if line.entries and line.ready <= len(made)]
        if not able or rng.random() < 0.1:
            made.append(Place("noop"))
            continue
        kind = rng.choice(able).entries[0][0]
        able = [line for line in able if line.entries[0][0] == kind]
        chosen = rng.sample(able, rng.randint(1, len(able)))
        made.append(_fill([line for line in able if line in chosen], kind, limits, rng, len(made)))
    return Plan(limits, tuple(made))


def _fill(
    lines: Sequence[_Line], kind: PlaceKind, limits: Limits, rng: random.Random, position: int
) -> Place:
    room = limits.capacity
    segments: list[PlannedSegment] = []
    completes: list[tuple[str, int]] = []
    for line in lines:
        batch = line.entries[0][1]
        wanted = rng.sample(line.left(), rng.randint(1, len(line.left())))
        picked: list[int] = []
        for at in sorted(wanted):
            if batch.loads[at] <= room:
                picked.append(at)
                room -= batch.loads[at]
        if not picked:
            continue
        columns = (batch.samples, batch.lengths, batch.labelled, batch.loads)
        numbers = (tuple(column[at] for at in picked) for column in columns)
        segments.append(PlannedSegment(line.queue.name, batch.step, *numbers))
        line.taken |= set(picked)
        if not line.left():
            completes.append((line.queue.name, batch.step))
            line.ready = position + (limits.distance if kind == "train" else 1)
            line.entries.pop(0)
            line.taken = set()
    return Place(kind, tuple(segments), tuple(completes))
