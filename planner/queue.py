"""What is to be planned: per job, the upcoming steps and evals that no plan holds yet.

The training loop repeats three calls, with windows of any size::

    plan = plan_window(queues, capacity=4096, max_places=256)
    queues = advance(queues, plan)  # what is left after the plan
    queues = [queue.extend(more_batches[queue.name]) for queue in queues]

To go on from inside a window (a job ended, failed or arrived), cut the plan where training stands:
``advance(queues, replace(plan, places=plan.places[:done]))``, then drop, change or add queues.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lorafusion.errors import PlanError
from lorafusion.planner.plan import Plan

__all__ = ["Batch", "JobQueue", "advance"]


@dataclass(frozen=True, slots=True)
class Batch:
    """The samples of a step (or of an eval after a step) that are not planned yet, *all* of them.

    Because all are here, the last one that a plan takes completes the step, even when earlier
    windows took a part.

    Attributes:
        step: The step, from 1; for an eval the step it follows, from 0.
        samples: Dataset indices in batch order.
        lengths: Tokens of each sample.
        started: True when earlier windows hold some of the step's samples.
    """

    step: int
    samples: tuple[int, ...]
    lengths: tuple[int, ...]
    started: bool = False

    def __post_init__(self) -> None:
        if not self.samples or len(self.samples) != len(self.lengths):
            raise PlanError(
                f"batch of step {self.step}: {len(self.samples)} samples and {len(self.lengths)} "
                "lengths; a batch needs at least one sample and one length for each."
            )
        # Plain ints only: numpy's would not go to JSON, and slow the planner down.
        if set(map(type, (self.step, *self.samples, *self.lengths))) != {int}:
            raise PlanError(
                f"batch of step {self.step}: step, samples and lengths must be Python integers; "
                "convert arrays with tolist()."
            )
        if self.step < 0 or min(self.samples) < 0 or min(self.lengths) < 1:
            raise PlanError(
                f"batch of step {self.step}: steps and samples are counted from 0, and a sample "
                "has at least one token."
            )


def _no_evals() -> Mapping[int, Batch]:
    return {}


@dataclass(frozen=True, slots=True)
class JobQueue:
    """The part of a job that may be planned now, at most a window of it.

    Attributes:
        name: The job.
        batches: Upcoming steps without a gap. The first may have been started.
        evals: Held-out samples to evaluate after step t, by t. The first that is allowed follows
            the last finished step, ``batches[0].step - 1``.
        remaining_tokens: Training tokens of the job's *whole run* that are not planned yet; the
            longest goes first. At least the tokens of ``batches``.
        ready_at: First place of the coming window where the job may stand. This carries the
            distance rule from one window into the next; :func:`advance` sets it.
    """

    name: str
    batches: tuple[Batch, ...]
    evals: Mapping[int, Batch] = field(default_factory=_no_evals)
    remaining_tokens: int = 0
    ready_at: int = 0

    def __post_init__(self) -> None:
        self._check_steps()
        self._check_evals()
        if self.ready_at < 0:
            raise PlanError(
                f"job {self.name!r}: ready_at is {self.ready_at}; it must be 0 or more."
            )
        tokens = sum(sum(batch.lengths) for batch in self.batches)
        if self.remaining_tokens < tokens:
            raise PlanError(
                f"job {self.name!r}: remaining_tokens is {self.remaining_tokens}; it must be at "
                f"least the {tokens} tokens of the queue's own batches."
            )

    @property
    def empty(self) -> bool:
        """True when nothing is left to plan here."""
        return not self.batches and not self.evals

    def extend(
        self, batches: Iterable[Batch], evals: Mapping[int, Batch] | None = None
    ) -> JobQueue:
        """The queue with later steps and evals put behind what it holds."""
        return replace(
            self, batches=(*self.batches, *batches), evals={**self.evals, **(evals or {})}
        )

    def _check_steps(self) -> None:
        steps = [batch.step for batch in self.batches]
        if steps and (steps[0] < 1 or steps != list(range(steps[0], steps[0] + len(steps)))):
            raise PlanError(
                f"job {self.name!r}: its batches are of steps {steps}; they must follow one "
                "another without a gap, from 1 or later."
            )
        late = [batch.step for batch in self.batches[1:] if batch.started]
        if late:
            raise PlanError(f"job {self.name!r}: only its first batch may be started, not {late}.")

    def _check_evals(self) -> None:
        if any(batch.step != step for step, batch in self.evals.items()):
            raise PlanError(f"job {self.name!r}: an eval batch stands under another step's key.")
        if not self.batches:
            if len(self.evals) > 1:
                raise PlanError(
                    f"job {self.name!r}: evals after steps {sorted(self.evals)}, but no batch "
                    "between them; without batches at most one eval can be due."
                )
            return
        # Once a step has begun, it is too late for the eval before it.
        first = self.batches[0].step - (0 if self.batches[0].started else 1)
        last = self.batches[-1].step
        outside = sorted(step for step in self.evals if not first <= step <= last)
        if outside:
            raise PlanError(
                f"job {self.name!r}: evals after steps {outside}; with these batches they may "
                f"follow steps {first} to {last}."
            )


def advance(queues: Sequence[JobQueue], plan: Plan) -> tuple[JobQueue, ...]:
    """What is left of ``queues`` after ``plan``, ready for the next window.

    Takes away the planned samples, counts down ``remaining_tokens``, and carries the distance
    rule into ``ready_at``. A job whose queue is used up stays, empty, so that it can be extended.

    Raises:
        PlanError: The plan holds a job, step or sample that ``queues`` do not.
    """
    taken: dict[tuple[str, str, int], Counter[int]] = defaultdict(Counter)
    finished: dict[str, int] = {}
    for index, place in enumerate(plan.places):
        for segment in place.segments:
            taken[segment.job, place.kind, segment.step].update(segment.samples)
        if place.kind == "train":
            finished.update((job, index) for job, _ in place.completes)
    left = tuple(_left_of(queue, taken, finished, plan) for queue in queues)
    if taken:
        job, kind, step = next(iter(taken))
        raise PlanError(f"the plan's {kind} step {step} of job {job!r} is not in the queues.")
    return left


def _left_of(
    queue: JobQueue,
    taken: dict[tuple[str, str, int], Counter[int]],
    finished: dict[str, int],
    plan: Plan,
) -> JobQueue:
    """One queue without what was ``taken`` (entries are used up), for :func:`advance`."""
    batches = [
        _without(batch, taken.pop((queue.name, "train", batch.step), None), queue.name)
        for batch in queue.batches
    ]
    evals = {
        step: _without(batch, taken.pop((queue.name, "eval", step), None), queue.name)
        for step, batch in queue.evals.items()
    }
    kept = tuple(batch for batch in batches if batch is not None)
    planned = _tokens(queue.batches) - _tokens(kept)
    last = finished.get(queue.name)
    ready_at = queue.ready_at if last is None else last + plan.distance
    return JobQueue(
        name=queue.name,
        batches=kept,
        evals={step: batch for step, batch in evals.items() if batch is not None},
        remaining_tokens=queue.remaining_tokens - planned,
        ready_at=max(0, ready_at - len(plan.places)),
    )


def _tokens(batches: Iterable[Batch]) -> int:
    return sum(sum(batch.lengths) for batch in batches)


def _without(batch: Batch, taken: Counter[int] | None, job: str) -> Batch | None:
    """``batch`` without the ``taken`` samples; None when nothing is left."""
    if taken is None:
        return batch
    samples: list[int] = []
    lengths: list[int] = []
    for sample, length in zip(batch.samples, batch.lengths, strict=True):
        if taken[sample]:
            taken[sample] -= 1
        else:
            samples.append(sample)
            lengths.append(length)
    if foreign := +taken:
        raise PlanError(
            f"the plan holds samples {sorted(foreign)} of job {job!r}, step {batch.step}, "
            "that are not in the queue."
        )
    if not samples:
        return None
    return replace(batch, samples=tuple(samples), lengths=tuple(lengths), started=True)
