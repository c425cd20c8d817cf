"""What the baselines share: packing a step first fit, no-ops in between, and the way to a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from lorafusion.errors import PlanError
from lorafusion.planner.plan import Limits, Place, Plan, PlannedSegment
from lorafusion.planner.queue import JobQueue

__all__ = [
    "Baseline",
    "Microbatch",
    "Sample",
    "check",
    "first_fit",
    "keep_distance",
    "padded_load",
    "samples",
    "to_plan",
]


@dataclass(frozen=True, slots=True)
class Baseline:
    """A plan made another system's way.

    Attributes:
        plan: Ordinary places.
        flush_after: Places after which the pipeline drains, for the simulator.
    """

    plan: Plan
    flush_after: frozenset[int] = frozenset()

    def unflushed(self) -> Plan:
        """The plan with S·D-1 no-ops for each flush, which take as long as it does.

        It keeps the distance between steps without a flush, so the verifier can check it.
        """
        noops = (Place("noop"),) * (self.plan.limits.distance - 1)
        last = len(self.plan.places) - 1
        places: list[Place] = []
        for index, place in enumerate(self.plan.places):
            places += [place, *(noops if index in self.flush_after and index < last else ())]
        return replace(self.plan, places=tuple(places))


class Sample(NamedTuple):
    """One sample of the queues: its job's index, its batch's and its own, and its load."""

    job: int
    batch: int
    position: int
    load: int


Microbatch = list[Sample]
"""What shares a place; empty for a no-op."""


def samples(queues: Sequence[JobQueue], jobs: Iterable[int], batch: int) -> Iterator[Sample]:
    """The samples of each job's batch of that index; none of a job that has fewer batches."""
    for job in jobs:
        if batch < len(queues[job].batches):
            for position, load in enumerate(queues[job].batches[batch].loads):
                yield Sample(job, batch, position, load)


def padded_load(microbatch: Iterable[Sample], limits: Limits, padding: int = 1) -> int:
    """What a microbatch takes of the capacity when each job's part is padded to a multiple."""
    loads: Counter[int] = Counter()
    for sample in microbatch:
        loads[sample.job] += sample.load
    return sum(_up(load, padding) + limits.segment_load for load in loads.values())


def first_fit(of: Iterable[Sample], limits: Limits, padding: int = 1) -> list[Microbatch]:
    """Pack by first fit: the largest sample first, into the first microbatch that it fits."""
    microbatches: list[Microbatch] = []
    rooms: list[int] = []
    loads: list[Counter[int]] = []  # of each job in it
    for sample in sorted(of, key=lambda sample: -sample.load):
        for index, room in enumerate(rooms):
            if _growth(loads[index], sample, limits, padding) <= room:
                break
        else:
            index = len(rooms)
            rooms.append(limits.capacity)
            loads.append(Counter())
            microbatches.append([])
        rooms[index] -= _growth(loads[index], sample, limits, padding)
        loads[index][sample.job] += sample.load
        microbatches[index].append(sample)
    return microbatches


def _growth(loads: Counter[int], sample: Sample, limits: Limits, padding: int) -> int:
    """What a microbatch with these loads of its jobs grows by."""
    before = loads[sample.job]
    if not before:
        return _up(sample.load, padding) + limits.segment_load
    return _up(before + sample.load, padding) - _up(before, padding)


def keep_distance(
    microbatches: Iterable[Microbatch], queues: Sequence[JobQueue], limits: Limits
) -> list[Microbatch]:
    """Put no-ops before each microbatch that would stand too close to the step before its own."""
    steps = [-1] * len(queues)  # the batch that the job is at
    ready = [queue.ready_at for queue in queues]
    last = [0] * len(queues)
    out: list[Microbatch] = []
    for microbatch in microbatches:
        for job, batch in {(sample.job, sample.batch) for sample in microbatch}:
            if batch != steps[job]:
                if steps[job] >= 0:
                    ready[job] = last[job] + limits.distance
                steps[job] = batch
        jobs = {sample.job for sample in microbatch}
        first = max((ready[job] for job in jobs), default=0)
        out += [[] for _ in range(len(out), first)]
        for job in jobs:
            last[job] = len(out)
        out.append(microbatch)
    return out


def to_plan(microbatches: Iterable[Microbatch], queues: Sequence[JobQueue], limits: Limits) -> Plan:
    """The plan of these microbatches, in this order."""
    left = {
        (job, index): len(batch.samples)
        for job, queue in enumerate(queues)
        for index, batch in enumerate(queue.batches)
    }
    places: list[Place] = []
    for microbatch in microbatches:
        segments: list[PlannedSegment] = []
        completes: list[tuple[str, int]] = []
        for job, batch in sorted({(sample.job, sample.batch) for sample in microbatch}):
            mine = sorted(sample.position for sample in microbatch if sample.job == job)
            segment = _segment(queues[job], batch, mine)
            segments.append(segment)
            left[job, batch] -= len(mine)
            if not left[job, batch]:
                completes.append((segment.job, segment.step))
        kind = "train" if segments else "noop"
        places.append(Place(kind, tuple(segments), tuple(completes)))
    assert not any(left.values()), "a baseline has left samples out"
    return Plan(limits, tuple(places))


def check(queues: Sequence[JobQueue], limits: Limits, padding: int = 1) -> None:
    """Refuse what a baseline cannot plan.

    Raises:
        PlanError: A setting below 1, two queues of one name, an eval, or a sample that does not fit
            into a microbatch alone; names the job and the sample.
    """
    sizes = (limits.capacity, limits.stages, limits.replicas, padding)
    if min(sizes) < 1:
        raise PlanError(
            "capacity, stages, replicas and padding are {}, {}, {} and {}; each must be at least "
            "1.".format(*sizes)
        )
    names = Counter(queue.name for queue in queues)
    for queue in queues:
        if names[queue.name] > 1:
            raise PlanError(f"{names[queue.name]} queues of job {queue.name!r}; one is allowed.")
        if queue.evals:
            raise PlanError(
                f"job {queue.name!r} has evals, which the baselines do not plan. Compare plans of "
                "queues without them: dataclasses.replace(queue, evals={})."
            )
        for batch in queue.batches:
            for sample, load in zip(batch.samples, batch.loads, strict=True):
                if (size := _up(load, padding) + limits.segment_load) > limits.capacity:
                    raise PlanError(
                        f"job {queue.name!r}, sample {sample}: a load of {size} alone, over the "
                        f"capacity of {limits.capacity}. Raise the capacity or lower the job's "
                        "max_seq_len."
                    )


def _segment(queue: JobQueue, index: int, positions: Sequence[int]) -> PlannedSegment:
    batch = queue.batches[index].at(positions)
    return PlannedSegment(
        queue.name, batch.step, batch.samples, batch.lengths, batch.labelled, batch.loads
    )


def _up(load: int, multiple: int) -> int:
    return -(-load // multiple) * multiple
