"""Check a plan against the queues it was made from. Shares no code with the packing.

The rules, each reported with the place, job and step that break it:

- *form*: sizes of at least 1; known kinds; a no-op holds nothing, any other place something; one
  segment per job and place, with a length and a load of at least 1 for each sample.
- *capacity*: no place holds more load than the plan's capacity.
- *alone*: a job that the plan calls alone shares no place.
- *samples*: each sample of the queues at most once, with its numbers, under its job, kind and step,
  in batch order; what is placed is a prefix of the job's work, complete but for the last entry.
- *order*: with S stages and D replicas, step t+1 begins at least S·D places after the last of t,
  and no job stands before its queue's ``ready_at`` (the same rule across windows).
- *evals*: the eval after step t stands at least S·D places after the last of t, and whole before
  the first of t+1.
- *completes*: exactly the (job, step) pairs whose last sample of that kind stands in the place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lorafusion.errors import PlanError
from lorafusion.planner.plan import Plan, PlannedSegment
from lorafusion.planner.queue import Batch, JobQueue

__all__ = ["find_violations", "verify_plan"]


def verify_plan(plan: Plan, queues: Sequence[JobQueue]) -> None:
    """Check that ``plan`` may be run.

    Args:
        plan: The plan of one window, or of several joined.
        queues: The queues that the (first) window was planned from.

    Raises:
        PlanError: The plan breaks a rule; the message lists every violation.
    """
    violations = find_violations(plan, queues)
    if violations:
        lines = "\n".join(f"- {violation}" for violation in violations)
        raise PlanError(f"the plan breaks {len(violations)} rules and must not be run:\n{lines}")


def find_violations(plan: Plan, queues: Sequence[JobQueue]) -> tuple[str, ...]:
    """Every rule that ``plan`` breaks, as a sentence; empty for a valid plan."""
    found = [*_form(plan), *_capacity(plan), *_alone(plan)]
    entries = {
        (queue.name, kind, batch.step): _Entry(batch)
        for queue in queues
        for kind, batches in (("train", queue.batches), ("eval", queue.evals.values()))
        for batch in batches
    }
    found += _collect(plan, entries)
    for key, entry in entries.items():
        found += entry.violations(f"job {key[0]!r}, {key[1]} step {key[2]}")
    for queue in queues:
        found += _order(queue, entries, plan.limits.stages * plan.limits.replicas)
    found += _completes(plan, entries)
    return tuple(found)


@dataclass(slots=True)
class _Entry:
    """What the queue asks for under one (job, kind, step), and what the plan holds of it."""

    batch: Batch
    places: list[int] = field(default_factory=list[int])
    samples: list[_Sample] = field(default_factory=list["_Sample"])
    out_of_order: list[int] = field(default_factory=list[int])

    @property
    def due(self) -> Counter[_Sample]:
        return Counter(_samples(self.batch))

    @property
    def missing(self) -> int:
        """Samples that the plan does not hold."""
        return (self.due - Counter(self.samples)).total()

    def add(self, place: int, segment: PlannedSegment) -> None:
        self.places.append(place)
        self.samples += _samples(segment)
        # `in` moves the iterator on: each sample must be found behind the one before it.
        rest = iter(self.batch.samples)
        known = set(self.batch.samples)
        if not all(sample in rest for sample in segment.samples if sample in known):
            self.out_of_order.append(place)

    def violations(self, where: str) -> Iterator[str]:
        if not self.samples:
            return  # most of a queue is behind the window
        due = self.due
        for key, count in sorted((Counter(self.samples) - due).items()):
            sample, length, labelled, load = key
            yield (
                f"{where}: sample {sample} with {length} tokens, {labelled} of them labelled, and "
                f"a load of {load} stands {due[key] + count} times in the plan, but {due[key]} "
                "times in the queue"
            )
        for place in self.out_of_order:
            yield f"place {place}: samples of {where} are not in batch order"


_LEAST = {"capacity": 1, "stages": 1, "replicas": 1, "segment_load": 0, "place_load": 0}

_Sample = tuple[int, int, int, int]
"""Index, tokens, labelled tokens, load."""


def _samples(of: Batch | PlannedSegment) -> Iterator[_Sample]:
    return zip(of.samples, of.lengths, of.labelled, of.loads, strict=False)


_Entries = Mapping[tuple[str, str, int], _Entry]


def _form(plan: Plan) -> Iterator[str]:
    for name, least in _LEAST.items():
        value = getattr(plan.limits, name)
        if value < least:
            yield f"{name} is {value}; it must be at least {least}"
    for index, place in enumerate(plan.places):
        if place.kind not in ("train", "eval", "noop"):
            yield f"place {index}: unknown kind {place.kind!r}"
        elif place.kind == "noop" and (place.segments or place.completes):
            yield f"place {index}: a no-op holds segments or completes a step"
        elif place.kind != "noop" and not place.segments:
            yield f"place {index}: a place of kind {place.kind!r} holds nothing"
        for job, count in Counter(segment.job for segment in place.segments).items():
            if count > 1:
                yield f"place {index}: {count} segments of job {job!r}; one is allowed"
        for segment in place.segments:
            columns = (segment.samples, segment.lengths, segment.labelled, segment.loads)
            uneven = len(set(map(len, columns))) > 1
            if uneven or min(segment.lengths, default=0) < 1 or min(segment.loads) < 1:
                yield (
                    f"place {index}: the segment of job {segment.job!r} needs at least one sample, "
                    "and for each a length and a load of at least 1"
                )


def _capacity(plan: Plan) -> Iterator[str]:
    limits = plan.limits
    for index, place in enumerate(plan.places):
        samples = sum(load for segment in place.segments for load in segment.loads)
        load = samples + limits.segment_load * len(place.segments)
        if load > limits.capacity:
            yield f"place {index}: a load of {load}, over the capacity of {limits.capacity}"


def _alone(plan: Plan) -> Iterator[str]:
    for index, place in enumerate(plan.places):
        for segment in place.segments:
            if segment.job in plan.alone and len(place.segments) > 1:
                yield f"place {index}: job {segment.job!r} is to be alone, and is not"


def _collect(plan: Plan, entries: _Entries) -> Iterator[str]:
    """Put every segment under its entry; report those that have none."""
    for index, place in enumerate(plan.places):
        for segment in place.segments:
            entry = entries.get((segment.job, place.kind, segment.step))
            if entry is None:
                yield (
                    f"place {index}: {place.kind} step {segment.step} of job {segment.job!r} "
                    "is not in the queues"
                )
            else:
                entry.add(index, segment)


def _order(queue: JobQueue, entries: _Entries, distance: int) -> Iterator[str]:
    """Order, distance and completeness along the entries of one job."""
    chain = [("train", batch.step) for batch in queue.batches]
    chain += [("eval", step) for step in queue.evals]
    chain.sort(key=lambda entry: (entry[1], entry[0] == "eval"))
    ready, previous, before = queue.ready_at, None, None
    for kind, step in chain:
        entry = entries[queue.name, kind, step]
        if not entry.places:
            before = before or f"{kind} step {step}, not placed"
            continue
        where = f"job {queue.name!r}, {kind} step {step}"
        if before is not None:
            yield f"{where} stands in place {min(entry.places)} without all of {before}"
        if min(entry.places) < ready:
            reason = "its queue's ready_at" if previous is None else f"the end of {previous}"
            yield (
                f"{where} begins in place {min(entry.places)}; after {reason} the first allowed "
                f"is {ready}"
            )
        if entry.missing:
            before = before or f"{kind} step {step}, {entry.missing} samples missing"
        ready = max(ready, max(entry.places) + (distance if kind == "train" else 1))
        previous = f"{kind} step {step}"


def _completes(plan: Plan, entries: _Entries) -> Iterator[str]:
    expected = {
        (max(entry.places), key)
        for key, entry in entries.items()
        if entry.places and not entry.missing
    }
    marks = [
        (index, (job, place.kind, step))
        for index, place in enumerate(plan.places)
        for job, step in place.completes
    ]
    for mark, count in sorted(Counter(marks).items()):
        if count > 1:
            yield f"{_mark(mark)} is marked {count} times"
    for mark in sorted(set(marks) - expected):
        yield f"{_mark(mark)} is marked, but its last sample does not stand there"
    for mark in sorted(expected - set(marks)):
        yield f"{_mark(mark)} is not marked, but its last sample stands there"


def _mark(mark: tuple[int, tuple[str, str, int]]) -> str:
    place, (job, kind, step) = mark
    return f"place {place}: the end of job {job!r}, {kind} step {step},"
