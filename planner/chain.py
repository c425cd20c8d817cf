"""A job as the scheduler sees it: its steps and evals one after another, and how long they take.

The *chain* of a job is the number of places it needs when nothing else is in its way: the bins of
each step, and S·D places from the last of a step to the first of the next. The job with the longest
chain is the one that the others must not delay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lorafusion.errors import PlanError
from lorafusion.planner.bins import count_bins
from lorafusion.planner.plan import Limits, PlaceKind
from lorafusion.planner.queue import Batch, JobQueue

__all__ = ["Chain", "Entry", "check_queues", "make_chains"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A step or an eval of a job.

    Attributes:
        kind: Which of the two.
        batch: Its samples.
        order: Positions in the batch, by ascending load.
        loads: Loads in that order.
        load: Their sum.
        bins: Places that it needs when it is alone.
        tail: Places from its last one (not counted) to the last of the job's chain.
    """

    kind: PlaceKind
    batch: Batch
    order: tuple[int, ...]
    loads: tuple[int, ...]
    load: int
    bins: int
    tail: float


@dataclass(frozen=True, slots=True)
class Chain:
    """What is left to plan of one job; see :class:`lorafusion.planner.queue.JobQueue`.

    Attributes:
        queue: Where it comes from.
        entries: Its steps and evals in the order in which they must stand.
        alone: Whether sharing places would gain it nothing.
    """

    queue: JobQueue
    entries: tuple[Entry, ...]
    alone: bool

    @property
    def length(self) -> float:
        """Places that the job needs when nothing else is in its way."""
        return self.entries[0].bins + self.entries[0].tail if self.entries else 0

    def gap(self, entry: int, limits: Limits) -> int:
        """Least number of places from the last of ``entry`` to the first of the next."""
        return limits.distance if self.entries[entry].kind == "train" else 1


_LEAST = {"capacity": 1, "stages": 1, "replicas": 1, "segment_load": 0, "place_load": 0}


def make_chains(queues: Sequence[JobQueue], limits: Limits) -> tuple[Chain, ...]:
    """The chains of ``queues``.

    Raises:
        PlanError: As :func:`check_queues`.
    """
    check_queues(queues, limits)
    return tuple(_chain(queue, limits) for queue in queues)


def _chain(queue: JobQueue, limits: Limits) -> Chain:
    steps = {batch.step: batch for batch in queue.batches}
    planned: list[tuple[PlaceKind, Batch]] = []
    for step in sorted({*steps, *queue.evals}):
        if step in steps:
            planned.append(("train", steps[step]))
        if step in queue.evals:
            planned.append(("eval", queue.evals[step]))
    entries: list[Entry] = []
    tail = _later(queue, limits)
    for kind, batch in reversed(planned):
        if entries:
            tail += entries[-1].bins + (limits.distance if kind == "train" else 1) - 1
        order = sorted(range(len(batch.loads)), key=batch.loads.__getitem__)
        loads = [batch.loads[position] for position in order]
        _, bins = count_bins(loads, limits.capacity - limits.segment_load)
        entries.append(Entry(kind, batch, tuple(order), tuple(loads), sum(loads), bins, tail))
    entries.reverse()
    return Chain(queue, tuple(entries), _gains_nothing(entries, limits))


def _later(queue: JobQueue, limits: Limits) -> float:
    """Places of the steps that are not in the queue yet, each with the gap before it."""
    steps = queue.remaining_steps - len(queue.batches)
    load = queue.remaining_load - queue.load
    bins = max(steps, load / (limits.capacity - limits.segment_load))
    return steps * (limits.distance - 1) + bins


def _gains_nothing(entries: Sequence[Entry], limits: Limits) -> bool:
    """Whether the room that the job alone leaves free is less than what one more job would take."""
    bins = sum(entry.bins for entry in entries)
    free = bins * (limits.capacity - limits.segment_load) - sum(entry.load for entry in entries)
    return bool(entries) and free <= bins * limits.segment_load


def check_queues(queues: Sequence[JobQueue], limits: Limits) -> None:
    """Refuse what no plan can hold.

    Raises:
        PlanError: A limit out of range, two queues of one name, or a sample above the capacity;
            names each of them.
    """
    for name, least in _LEAST.items():
        value = getattr(limits, name)
        if value < least:
            raise PlanError(f"{name} is {value}; it must be an integer of at least {least}.")
    counts = Counter(queue.name for queue in queues)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise PlanError(f"more than one queue for the jobs {twice}; each job has one queue.")
    too_long = [
        f"job {queue.name!r}, sample {sample}: {length} tokens, load {load}"
        for queue in queues
        for batch in (*queue.batches, *queue.evals.values())
        for sample, length, load in zip(batch.samples, batch.lengths, batch.loads, strict=True)
        if load + limits.segment_load > limits.capacity
    ]
    if too_long:
        beside = f" (less {limits.segment_load} for its job)" if limits.segment_load else ""
        raise PlanError(
            f"longer than the capacity of {limits.capacity}{beside}: {'; '.join(too_long)}. "
            "Raise the capacity or lower the job's max_seq_len."
        )
