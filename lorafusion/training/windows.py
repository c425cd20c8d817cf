"""What is to be run next, window by window, of the jobs that are there.

While a window runs, the next one is planned in another process. What is planned depends on the jobs
alone, never on how long that takes: where a job leaves inside a window, or before its places in the
next, that plan is dropped and another is made from where training stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Self

from lorafusion.planner.ahead import Ahead
from lorafusion.planner.plan import Limits, Plan
from lorafusion.planner.queue import Batch, JobQueue, advance
from lorafusion.planner.schedule import Policy
from lorafusion.planner.verify import verify_plan
from lorafusion.planner.windows import join, next_window
from lorafusion.training.job import TrainingJob
from lorafusion.training.turn import idle_places, whole_turns

# Places planned ahead. A job completes at most one step a place, so as many steps are enough.
WINDOW = 64

# Samples placed in search of a plan that training waits for, the first above all: at most 0.1 s.
EFFORT_AT_ONCE = 6_000


class Windows:
    """The plans of a run, one behind the other. Places are counted over the whole run."""

    def __init__(
        self,
        jobs: Mapping[str, TrainingJob],
        limits: Limits,
        policy: Policy = "makespan",
    ) -> None:
        """Nothing is planned yet.

        Args:
            jobs: Those that still train, by name, as they are at any time.
            limits: What plans are made for.
            policy: Whether the run as a whole is to end soonest, or each job to get its share at
                any time, which is what jobs of many people want that come and go.
        """
        self._jobs = jobs
        self._policy: Policy = policy
        self._limits = limits
        self._ahead = Ahead()
        self._learned = False
        self._plan = Plan(limits, ())
        self._start = 0
        self._queues: Sequence[JobQueue] = [job.queue(window=self._places) for job in jobs.values()]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End the process that plans."""
        self._ahead.close()

    @property
    def limits(self) -> Limits:
        """Of the next plan."""
        return self._limits

    def add(self, job: TrainingJob) -> None:
        """Plan the job too, from the next plan on; :meth:`cut` makes that come sooner."""
        self._queues = join(self._queues, job.queue(window=self._places))

    def cut(self, place: int) -> None:
        """Run the plan only up to ``place``, a turn's first; what is behind is planned anew."""
        if place < self._start + len(self._plan.places):
            self._plan = replace(self._plan, places=self._plan.places[: place - self._start])
        self._ahead.discard()

    def lower(self, capacity: int) -> None:
        """Plan with less from the next plan on; :meth:`cut` makes that come sooner."""
        self._limits = replace(self._limits, capacity=capacity)
        self._learned = True

    def next_plan(self) -> Plan | None:
        """The plan behind the one before; None where nothing is left to plan.

        Raises:
            PlanError: None can be made.
        """
        queues = self._refilled(self._after(self._plan))
        start = self._start + len(self._plan.places)
        if all(queue.empty for queue in queues):
            return None
        if self._ahead.asked:
            plan = self._ahead.take()
        else:
            plan = next_window(
                queues,
                self._limits,
                max_places=self._places,
                policy=self._policy,
                effort=EFFORT_AT_ONCE,
            )
            verify_plan(plan, queues)
        plan = whole_turns(plan)
        self._queues, self._plan, self._start = queues, plan, start
        behind = self._refilled(self._after(plan))
        if not all(queue.empty for queue in behind):
            self._ahead.submit(behind, self._limits, max_places=self._places, policy=self._policy)
        return plan

    def idle(self, plan: Plan) -> None:
        """Places without samples that were put behind the plan before."""
        self._queues = self._after(self._plan)
        self._start += len(self._plan.places)
        self._plan = plan

    def stretch(self, plan: Plan | None, places: int) -> Plan:
        """The plan that was asked for last, None too, with no-ops behind it up to so many."""
        if plan is None:
            plan = Plan(self._limits, idle_places(places))
            self.idle(plan)
        elif len(plan.places) < places:
            lacking = idle_places(places - len(plan.places))
            plan = self._plan = replace(plan, places=(*plan.places, *lacking))
        return plan

    @property
    def _places(self) -> int:
        """The most of a window: whole turns."""
        return max(WINDOW // self._limits.replicas, 1) * self._limits.replicas

    def _after(self, plan: Plan) -> Sequence[JobQueue]:
        return advance(self._queues, plan)

    def _refilled(self, queues: Sequence[JobQueue]) -> Sequence[JobQueue]:
        """The queues of the jobs that are there, each with as many steps as a window may take."""
        filled = [
            self._jobs[queue.name].refill(queue, window=self._places)
            for queue in queues
            if queue.name in self._jobs
        ]
        if not self._learned:
            return filled
        return [_fitted(queue, self._limits.capacity) for queue in filled]


def _fitted(queue: JobQueue, capacity: int) -> JobQueue:
    """The queue with samples that are longer than the capacity, which is learned, each alone.

    Whether one fits is not known before it is tried, and it must not make all places as large.
    """
    if all(max(batch.loads) <= capacity for batch in (*queue.batches, *queue.evals.values())):
        return queue
    return replace(
        queue,
        batches=tuple(_fitted_batch(batch, capacity) for batch in queue.batches),
        evals={step: _fitted_batch(batch, capacity) for step, batch in queue.evals.items()},
    )


def _fitted_batch(batch: Batch, capacity: int) -> Batch:
    return replace(batch, loads=tuple(min(load, capacity) for load in batch.loads))
