"""What is to be planned: per job, the upcoming steps and evals that no plan holds yet.

The training loop repeats three calls, with windows of any size::

    plan = plan_window(queues, Limits(capacity=4096), max_places=256)
    queues = advance(queues, plan)  # what is left after the plan
    queues = [queue.extend(more_batches[queue.name]) for queue in queues]

To go on from inside a window (a job ended, failed or arrived), cut the plan where training stands:
``advance(queues, replace(plan, places=plan.places[:done]))``, then drop, change or add queues.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lorafusion.errors import PlanError
from lorafusion.planner.plan import Plan
from lorafusion.planner.shares import Shares

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
        labelled: Tokens of each sample that have a target; all of them where none are given.
        loads: What each sample takes of a place's capacity; its tokens where none are given.
        started: True when earlier windows hold some of the step's samples.
    """

    step: int
    samples: tuple[int, ...]
    lengths: tuple[int, ...]
    labelled: tuple[int, ...] = ()
    loads: tuple[int, ...] = ()
    started: bool = False

    def __post_init__(self) -> None:
        for name in ("labelled", "loads"):
            if not getattr(self, name):
                object.__setattr__(self, name, self.lengths)
        columns = (self.samples, self.lengths, self.labelled, self.loads)
        if not self.samples or len(set(map(len, columns))) > 1:
            raise PlanError(
                f"batch of step {self.step}: {len(self.samples)} samples and {len(self.lengths)} "
                f"lengths, {len(self.labelled)} labelled, {len(self.loads)} loads; a batch needs "
                "at least one sample, and one number of each kind for each."
            )
        # Plain ints only: numpy's would not go to JSON, and slow the planner down.
        if type(self.step) is not int or any(set(map(type, column)) != {int} for column in columns):
            raise PlanError(
                f"batch of step {self.step}: step, samples, lengths, labelled and loads must be "
                "Python integers; convert arrays with tolist()."
            )
        if self.step < 0 or min(*self.samples, *self.labelled, 0) < 0:
            raise PlanError(
                f"batch of step {self.step}: steps, samples and labelled tokens are counted from 0."
            )
        if min(*self.lengths, *self.loads, 1) < 1:
            raise PlanError(
                f"batch of step {self.step}: a sample has at least one token, and a load of at "
                "least 1."
            )

    @property
    def load(self) -> int:
        """Load of all its samples."""
        return sum(self.loads)

    def at(self, positions: Sequence[int]) -> Batch:
        """The batch with the samples at ``positions`` alone, started."""
        columns = (self.samples, self.lengths, self.labelled, self.loads)
        picked = (tuple(column[position] for position in positions) for column in columns)
        return Batch(self.step, *picked, started=True)


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
        remaining_load: Training load of the job's *whole run* that is not planned yet; at least
            that of ``batches``, and that where none is given.
        remaining_steps: Steps of the whole run whose last sample is not planned yet; at least as
            many as ``batches``, and that where none are given.
        ready_at: First place of the coming window where the job may stand. This carries the
            distance rule from one window into the next; :func:`advance` sets it.
        weight: Its share of the places, against other jobs' weights.
        served: What it has paid for its places of training, over its weight, in units of load;
            see :mod:`lorafusion.planner.shares`. Under the fair policy the least served goes first.
        rank: Rank of its adapter, for the cost model.
    """

    name: str
    batches: tuple[Batch, ...]
    evals: Mapping[int, Batch] = field(default_factory=_no_evals)
    remaining_load: int = 0
    remaining_steps: int = 0
    ready_at: int = 0
    weight: float = 1.0
    served: float = 0.0
    rank: int = 0

    def __post_init__(self) -> None:
        if not self.remaining_load:
            object.__setattr__(self, "remaining_load", self.load)
        if not self.remaining_steps:
            object.__setattr__(self, "remaining_steps", len(self.batches))
        self._check_steps()
        self._check_evals()
        if self.ready_at < 0:
            raise PlanError(
                f"job {self.name!r}: ready_at is {self.ready_at}; it must be 0 or more."
            )
        for name, least in (("load", self.load), ("steps", len(self.batches))):
            remaining = getattr(self, f"remaining_{name}")
            if remaining < least:
                raise PlanError(
                    f"job {self.name!r}: remaining_{name} is {remaining}; it must be at least the "
                    f"{least} of the queue's own batches."
                )
        if not (0 < self.weight < math.inf and 0 <= self.served < math.inf and self.rank >= 0):
            raise PlanError(
                f"job {self.name!r}: weight {self.weight}, served {self.served}, rank {self.rank}; "
                "a weight is above 0 and finite, the others are 0 or more."
            )

    @property
    def load(self) -> int:
        """Training load of the batches here."""
        return sum(batch.load for batch in self.batches)

    @property
    def sample_count(self) -> int:
        """Samples of the batches and evals here."""
        return sum(len(batch.samples) for batch in (*self.batches, *self.evals.values()))

    @property
    def empty(self) -> bool:
        """True when nothing is left to plan here."""
        return not self.batches and not self.evals

    def extend(
        self, batches: Iterable[Batch], evals: Mapping[int, Batch] | None = None
    ) -> JobQueue:
        """The queue with later steps and evals put behind what it holds."""
        batches = (*self.batches, *batches)
        return replace(
            self,
            batches=batches,
            evals={**self.evals, **(evals or {})},
            remaining_load=max(self.remaining_load, sum(batch.load for batch in batches)),
            remaining_steps=max(self.remaining_steps, len(batches)),
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

    Takes away the planned samples, counts down what remains, counts up what was served, and carries
    the distance rule into ``ready_at``. A job whose queue is used up stays, empty, so that it can
    be extended.

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
    left = [_left_of(queue, taken, finished, plan) for queue in queues]
    if taken:
        job, kind, step = next(iter(taken))
        raise PlanError(f"the plan's {kind} step {step} of job {job!r} is not in the queues.")
    served = _served(queues, plan)
    return tuple(replace(queue, served=served.get(queue.name, queue.served)) for queue in left)


def _served(queues: Sequence[JobQueue], plan: Plan) -> dict[str, float]:
    """What each job that had something to plan is served after ``plan``."""
    shares = Shares(((q.name, q.weight, q.served) for q in queues if not q.empty), plan.limits)
    left = {queue.name: queue.sample_count for queue in queues}
    for place in plan.places:
        if place.kind == "train":
            shares.charge({segment.job: sum(segment.loads) for segment in place.segments})
        for segment in place.segments:
            left[segment.job] -= len(segment.samples)
            if not left[segment.job]:
                shares.leave(segment.job)
    return shares.served


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
    last = finished.get(queue.name)
    ready_at = queue.ready_at if last is None else last + plan.limits.distance
    planned = queue.load - sum(batch.load for batch in kept)
    return replace(
        queue,
        batches=kept,
        evals={step: batch for step, batch in evals.items() if batch is not None},
        remaining_load=queue.remaining_load - planned,
        remaining_steps=queue.remaining_steps - len(batches) + len(kept),
        ready_at=max(0, ready_at - len(plan.places)),
    )


def _without(batch: Batch, taken: Counter[int] | None, job: str) -> Batch | None:
    """``batch`` without the ``taken`` samples; None when nothing is left."""
    if taken is None:
        return batch
    left: list[int] = []
    for position, sample in enumerate(batch.samples):
        if taken[sample]:
            taken[sample] -= 1
        else:
            left.append(position)
    if foreign := +taken:
        raise PlanError(
            f"the plan holds samples {sorted(foreign)} of job {job!r}, step {batch.step}, "
            "that are not in the queue."
        )
    return batch.at(left) if left else None
