"""Random courses of a run: jobs, and which revision of the plan rank 0 publishes when.

A course is data, made ahead and the same for all processes. What rank 0 knows when is simulated: at
place p the steps that the places up to p - S complete.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorafusion.jobs.schema import JobSpec
from lorafusion.planner.plan import Limits, Place, Plan
from lorafusion.planner.queue import JobQueue, advance
from lorafusion.planner.verify import verify_plan
from lorafusion.planner.windows import next_window
from lorafusion.training.queues import whole_queue
from lorafusion.training.revision import Leave, Revision
from lorafusion.training.team import Message
from lorafusion.training.turn import whole_turns
from tests.training.pipeline.jobs import LAYERS, LONGEST, make_data, make_job, plain_job
from tests.training.pipeline.random_plans import random_window

EVER = 1 << 30


@dataclass(frozen=True)
class Settings:
    """What kind of course.

    Attributes:
        number: Its seed.
        stages: That it is made for.
        replicas: The same.
        distance: Places between steps of a job; as many as there are ranks, if it is right.
        deterministic: Equal bytes are asked for.
        leaves: Jobs may leave before their end.
        plain: Jobs as :func:`plain_job` makes them, in windows of the planner.
    """

    number: int
    stages: int
    replicas: int = 1
    distance: int = 0
    deterministic: bool = False
    leaves: bool = True
    plain: bool = False


@dataclass
class Course:
    """What happens.

    Attributes:
        settings: What it was made from.
        jobs: Settings of each.
        revisions: Each as a message, with the place before which it is published.
        final: The last step of each job whose state counts in the end.
        counts: The last place whose results count, of each job.
        poison: A job and a step, and the layer where its gradient is infinite.
        places: All that are run, in order.
    """

    settings: Settings
    jobs: list[dict[str, Any]]
    revisions: list[tuple[int, Message]] = field(default_factory=list[tuple[int, Message]])
    final: dict[str, int] = field(default_factory=dict[str, int])
    counts: dict[str, int] = field(default_factory=dict[str, int])
    poison: tuple[str, int, int] | None = None
    places: tuple[Place, ...] = ()

    def steps(
        self, replica: int = 0, replicas: int = 1
    ) -> Iterator[tuple[int, str, int, tuple[int, ...]]]:
        """Every step that counts: the place that completes it, job, step, its samples there."""
        samples: dict[tuple[str, int], tuple[int, ...]] = {}
        for position, place in enumerate(self.places):
            if place.kind != "train":
                continue
            for segment in place.segments:
                key = (segment.job, segment.step)
                here = segment.samples if position % replicas == replica else ()
                samples[key] = samples.get(key, ()) + here
            for job, step in place.completes:
                if position <= self.counts[job]:
                    yield position, job, step, samples[job, step]


def make_course(settings: Settings) -> Course:
    """A course by its settings; equal ones give equal courses."""
    rng = random.Random(repr((settings.number, settings.stages * settings.replicas)))
    if settings.plain:
        jobs = [plain_job(rng, name) for name in "ab"]
    else:
        jobs = [make_job(rng, f"job{i}") for i in range(rng.randint(1, 6))]
    course = Course(settings, jobs, counts=dict.fromkeys((job["name"] for job in jobs), EVER))
    if rng.random() < 0.3 and not settings.plain:
        job = rng.choice(jobs)
        course.poison = (job["name"], rng.randint(1, job["max_steps"]), rng.randrange(LAYERS))
    _Making(course, rng).make()
    return course


class _Making:
    def __init__(self, course: Course, rng: random.Random) -> None:
        self._course = course
        self._settings = course.settings
        self._rng = rng
        self._limits = Limits(
            3 * LONGEST if course.settings.plain else rng.randint(LONGEST, 5 * LONGEST),
            stages=course.settings.distance or course.settings.stages,
            replicas=course.settings.replicas,
        )
        self._ranks = course.settings.stages * course.settings.replicas
        specs = [JobSpec.model_validate(job) for job in course.jobs]
        self._queues: Sequence[JobQueue] = [whole_queue(spec, make_data(spec)) for spec in specs]
        self._here = {spec.name for spec in specs}
        self._places: list[Place] = []
        self._idle = False
        self._position = 0

    def make(self) -> None:
        """Go from place to place as rank 0 does."""
        while not (self._idle and self._position == len(self._places)):
            self._look()
            self._position += self._settings.replicas
        steps = self._steps_until(len(self._places))
        leaves = tuple(Leave(job, steps[job], save=True) for job in sorted(self._here))
        self._publish(Revision(len(self._places), None, leaves, last=True))
        self._course.places = tuple(self._places)
        self._course.final |= {leave.job: leave.step for leave in leaves}
        verify_plan(Plan(self._limits, self._course.places), self._queues)

    def _look(self) -> None:
        """Before a place: publish what is due, or cut the plan."""
        rng, place, known = self._rng, self._position, len(self._places)
        if self._idle:
            return
        cut = not self._settings.plain and rng.random() < 0.15
        if 0 < place < known and cut:
            # The other ranks may have posted the receive of this place already.
            leaves = self._let_go() if self._settings.leaves and rng.random() < 0.5 else ()
            later = not leaves and rng.random() < 0.4
            turn = self._settings.replicas
            start = rng.randrange(place + turn, known + 1, turn) if later else place + turn
            del self._places[start:]
            self._publish_next(start, leaves, stop=rng.random() < 0.15)
        elif place >= known - self._settings.replicas or rng.random() < 0.1:
            self._publish_next(known, (), stop=False)

    def _let_go(self) -> tuple[Leave, ...]:
        """A job leaves early, with a checkpoint or without."""
        job = self._rng.choice(sorted(self._here))
        until = self._position - self._ranks + self._settings.replicas - 1
        leave = Leave(job, self._steps_until(until + 1)[job], save=self._rng.random() < 0.7)
        self._here.remove(job)
        self._course.counts[job] = until
        if leave.save:
            self._course.final[job] = leave.step
        return (leave,)

    def _publish_next(self, start: int, leaves: tuple[Leave, ...], *, stop: bool) -> None:
        left = [
            queue
            for queue in advance(self._queues, Plan(self._limits, tuple(self._places)))
            if queue.name in self._here
        ]
        if stop or not self._here or all(queue.empty for queue in left):
            self._idle = True
            plan = Plan(self._limits, (Place("noop"),) * self._ranks)
        else:
            plan = whole_turns(self._window(left))
            verify_plan(plan, left)
        self._publish(Revision(start, plan, (*leaves, *self._ended())))
        self._places += plan.places

    def _ended(self) -> list[Leave]:
        """Jobs whose end rank 0 knows of; evals behind the last step may still be to come."""
        heard = max(0, self._position - self._ranks + self._settings.replicas)
        steps = self._steps_until(heard)
        planned = advance(self._queues, Plan(self._limits, tuple(self._places)))
        running = {
            segment.job for place in self._places[max(0, heard - 1) :] for segment in place.segments
        }
        names = [queue.name for queue in planned if queue.empty and queue.name not in running]
        leaves = [Leave(name, steps[name], save=True) for name in names if name in self._here]
        self._here -= set(names)
        self._course.final |= {leave.job: leave.step for leave in leaves}
        return leaves

    def _window(self, queues: Sequence[JobQueue]) -> Plan:
        rng = self._rng
        places = rng.randint(2, 10)
        if not self._settings.plain and rng.random() < 0.5:
            return random_window(queues, self._limits, rng, places)
        policy, effort = rng.choice(["makespan", "fair"]), rng.choice([0, 300])
        return next_window(queues, self._limits, max_places=places, policy=policy, effort=effort)

    def _publish(self, revision: Revision) -> None:
        self._course.revisions.append((self._position, revision.message()))

    def _steps_until(self, end: int) -> Mapping[str, int]:
        """Steps of each job that the places before ``end`` complete."""
        steps = dict.fromkeys((queue.name for queue in self._queues), 0)
        for place in self._places[: max(0, end)]:
            if place.kind == "train":
                steps.update(place.completes)
        return steps
