"""The training loop: run a window's places, step each job whose batch is complete.

While a window runs, the next one is planned in another process. What is planned depends on the jobs
alone, never on how long that takes: where a job leaves inside a window, or before its places in the
next, that plan is dropped and another is made from where training stands.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lorafusion.errors import CheckpointError, LorafusionError, OutputError, PlanError, StepError
from lorafusion.planner.ahead import Ahead
from lorafusion.planner.plan import Limits, Place, Plan
from lorafusion.planner.queue import JobQueue, advance
from lorafusion.planner.verify import verify_plan
from lorafusion.planner.windows import next_window
from lorafusion.training.events import Events
from lorafusion.training.executor import Executor
from lorafusion.training.job import StepResult, TrainingJob
from lorafusion.training.output import JobOutput, job_result
from lorafusion.training.result import JobResult, JobState

# Places planned ahead. A job completes at most one step a place, so as many steps are enough.
WINDOW = 64

# Samples placed in search of a plan that training waits for, the first above all: at most 0.1 s.
EFFORT_AT_ONCE = 6_000


@dataclass(frozen=True)
class Workplace:
    """What all jobs of a run share.

    Attributes:
        executor: Runs a place.
        capacity: Most rows in a microbatch.
        base_model: Name of the base, for the exported adapters.
        linears: All linears of the base, the head among them, for the exported adapters.
        fan_in_fan_out: Whether they store their weights as [in, out], for the same.
        events: Told what happens.
        should_stop: Asked between places; a reason means stop.
        should_stop_job: Asked of a job after its steps and evals; a reason means pause it.
    """

    executor: Executor
    capacity: int
    base_model: str
    linears: Sequence[str]
    fan_in_fan_out: bool
    events: Events
    should_stop: Callable[[], str | None]
    should_stop_job: Callable[[str], str | None]


@dataclass
class Clock:
    """Seconds of training, and real tokens of the samples trained on, in this process."""

    seconds: float = 0.0
    tokens: dict[str, int] = field(default_factory=dict)

    def rate(self, name: str) -> float:
        """Tokens per second of one job."""
        return self.tokens.get(name, 0) / self.seconds if self.seconds else 0.0

    @property
    def total_rate(self) -> float:
        """Tokens per second of all jobs."""
        return sum(self.tokens.values()) / self.seconds if self.seconds else 0.0


class TrainingLoop:
    """Runs jobs to their end on one process. A job that fails leaves; the others go on."""

    def __init__(
        self,
        workplace: Workplace,
        jobs: Sequence[TrainingJob],
        outputs: Mapping[str, JobOutput],
        *,
        on_removed: Callable[[TrainingJob], None],
    ) -> None:
        """``on_removed`` is called once a job has ended, to free its slot."""
        self._place = workplace
        self._jobs = {job.name: job for job in jobs}
        self._outputs = outputs
        self._on_removed = on_removed
        self.clock = Clock()
        self.results: dict[str, JobResult] = {}

    def run(self) -> Generator[None]:
        """Train until every job has ended or a stop is asked for; pauses after each place."""
        queues = [job.queue(window=WINDOW) for job in self._jobs.values()]
        for job in [self._jobs[queue.name] for queue in queues if queue.empty]:
            self._succeed(job)  # resumed from its last step
        self._pause_where_asked(list(self._jobs))
        with Ahead() as ahead:
            yield from self._run_windows(queues, ahead)
        for job in list(self._jobs.values()):
            self._pause(job, self._place.should_stop() or "")

    def _run_windows(self, queues: Sequence[JobQueue], ahead: Ahead) -> Generator[None]:
        limits = Limits(self._place.capacity)
        while self._jobs and not self._place.should_stop():
            queues = self._refill(queues)
            plan = self._next_plan(queues, limits, ahead)
            behind = self._refill(advance(queues, plan))
            if not all(queue.empty for queue in behind):
                ahead.submit(behind, limits, max_places=WINDOW)
            ran = yield from self._run_window(plan)
            if ran is plan and all(queue.empty or queue.name in self._jobs for queue in behind):
                queues = behind
            else:
                ahead.discard()
                queues = advance(queues, ran)

    def _refill(self, queues: Sequence[JobQueue]) -> list[JobQueue]:
        """The queues of the jobs that are there, each with as many steps as a window may take."""
        return [
            self._jobs[queue.name].refill(queue, window=WINDOW)
            for queue in queues
            if queue.name in self._jobs
        ]

    def _next_plan(self, queues: Sequence[JobQueue], limits: Limits, ahead: Ahead) -> Plan:
        try:
            if ahead.asked:
                return ahead.take()
            plan = next_window(queues, limits, max_places=WINDOW, effort=EFFORT_AT_ONCE)
            verify_plan(plan, queues)
            return plan
        except PlanError as error:
            for job in [job for job in self._jobs.values() if job.step]:
                self._pause(job, str(error))  # what is done must not be lost
            raise

    def _run_window(self, plan: Plan) -> Generator[None, None, Plan]:
        """Run ``plan`` until a job leaves or a stop is asked for; returns the part that ran."""
        for index, place in enumerate(plan.places):
            jobs = {segment.job for segment in place.segments}
            if not jobs <= self._jobs.keys() or self._place.should_stop():
                return replace(plan, places=plan.places[:index])
            self._run_place(place)
            yield
        return plan

    def _run_place(self, place: Place) -> None:
        started = time.perf_counter()
        self._place.executor.run(place, self._jobs)
        results: list[tuple[TrainingJob, StepResult]] = []
        if place.kind == "train":
            results = self._finish_steps(place)
            self.clock.seconds += time.perf_counter() - started
        for job, result in results:
            self._contain(job, self._report_step, result)
        if place.kind == "eval":
            for name, step in place.completes:
                self._contain(self._jobs[name], self._report_eval, step)
        for job in [self._jobs[name] for name, _ in place.completes if name in self._jobs]:
            if job.finished:
                self._succeed(job)
        self._pause_where_asked([name for name, _ in place.completes])

    def _pause_where_asked(self, names: Sequence[str]) -> None:
        for name in names:
            reason = self._place.should_stop_job(name)
            if reason and name in self._jobs:
                self._pause(self._jobs[name], reason)

    def _finish_steps(self, place: Place) -> list[tuple[TrainingJob, StepResult]]:
        results: list[tuple[TrainingJob, StepResult]] = []
        for job in [self._jobs[name] for name, _ in place.completes]:
            try:
                results.append((job, job.finish_step()))
            except StepError as error:
                self._fail(job, str(error))
        return results

    def _contain(
        self, job: TrainingJob, report: Callable[[TrainingJob, Any], None], what: object
    ) -> None:
        """What goes wrong with one job's files is that job's failure alone."""
        try:
            report(job, what)
        except (OutputError, CheckpointError) as error:
            self._fail(job, str(error))

    def _report_step(self, job: TrainingJob, result: StepResult) -> None:
        self.clock.tokens[job.name] = self.clock.tokens.get(job.name, 0) + result.tokens
        rate = self.clock.rate(job.name)
        self._place.events.step(job.name, result, tokens_per_s=rate)
        self._outputs[job.name].record_step(job, result, tokens_per_s=rate)
        if job.progress.bad_steps >= job.spec.max_bad_steps:
            self._fail(
                job,
                f"{job.progress.bad_steps} steps in a row up to step {job.step} had no finite loss "
                f"and gradient (loss {result.loss}, gradient norm {result.grad_norm}). Lower the "
                "learning rate or look at the data; max_bad_steps sets how many are allowed.",
            )

    def _report_eval(self, job: TrainingJob, step: int) -> None:
        loss, tokens = job.finish_eval(step)
        self._place.events.evaluated(job.name, step, loss)
        self._outputs[job.name].record_eval(step, loss, tokens)

    def _succeed(self, job: TrainingJob) -> None:
        try:
            self._end(job, "succeeded", export=True)
        except LorafusionError as error:
            self._fail(job, str(error))

    def _fail(self, job: TrainingJob, reason: str) -> None:
        self._outputs[job.name].withdraw()
        try:
            self._end(job, "failed", reason=reason)
        except (OutputError, CheckpointError) as error:
            self._finish(job, job_result(job, "failed", reason=f"{reason} And: {error}"))

    def _pause(self, job: TrainingJob, reason: str) -> None:
        try:
            self._outputs[job.name].save(job)
            self._end(job, "paused", reason=reason, export=job.step > 0)
        except LorafusionError as error:
            self._fail(job, str(error))

    def _end(
        self, job: TrainingJob, state: JobState, *, reason: str | None = None, export: bool = False
    ) -> None:
        output = self._outputs[job.name]
        adapter = None
        if export:
            job.check_weights()
            adapter = output.export(
                job,
                base_model=self._place.base_model,
                linears=self._place.linears,
                fan_in_fan_out=self._place.fan_in_fan_out,
            )
        output.close()
        self._finish(job, job_result(job, state, reason=reason, adapter=adapter))

    def _finish(self, job: TrainingJob, result: JobResult) -> None:
        folder = str(self._outputs[job.name].folder)
        result = replace(result, folder=folder, tokens_per_s=self.clock.rate(job.name))
        del self._jobs[job.name]
        self.results[job.name] = result
        self._place.events.ended(result)
        self._on_removed(job)
