"""The training loop on rank 0: run its own stage, and tell jobs and people what came of it.

The other ranks follow its revisions of the plan, see :mod:`lorafusion.training.follow`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Executor as Pool
from dataclasses import dataclass
from typing import Any

from lorafusion.errors import CheckpointError, OutputError
from lorafusion.planner.plan import Limits, Place
from lorafusion.training.arrivals import Newcomers
from lorafusion.training.clock import Clock
from lorafusion.training.course import Course
from lorafusion.training.endings import Endings
from lorafusion.training.events import Events
from lorafusion.training.executor import Executor
from lorafusion.training.job import StepResult, TrainingJob
from lorafusion.training.judge import Report
from lorafusion.training.output import ExportFacts, JobOutput
from lorafusion.training.residents import Residents
from lorafusion.training.result import JobResult
from lorafusion.training.revision import Leave
from lorafusion.training.shard_writer import Shard
from lorafusion.training.team import Message, Team
from lorafusion.training.trace_file import PlaceTrace
from lorafusion.training.turn import Turn
from lorafusion.training.windows import Windows
from lorafusion.training.zipped import ZippedWindows

# A stage says why it gave a job up on another channel than that it did: seconds to wait for it.
REASON_S = 2.0
# Between two looks at what is still being written at the end of a run.
LOOK_S = 0.005
# The same for new jobs where there is none to train.
IDLE_S = 0.05


@dataclass(frozen=True)
class Workplace:
    """What all jobs of a run share on rank 0.

    Attributes:
        team: The ranks.
        executor: Runs a place on this rank's stage.
        residents: The jobs on it.
        limits: What plans are made for.
        facts: For the exported adapters.
        writers: Where they are written.
        events: Told what happens.
        should_stop: Asked between places; a reason means stop.
        should_stop_job: Asked of a job after its steps and evals; a reason means pause it.
        newcomers: Jobs that come while the run goes on; None: none do.
        places: Keeps which places were run.
        homes: Job -> the replica that it is on; None: every job is on all.
    """

    team: Team
    executor: Executor
    residents: Residents
    limits: Limits
    facts: ExportFacts
    writers: Pool
    events: Events
    should_stop: Callable[[], str | None]
    should_stop_job: Callable[[str], str | None]
    newcomers: Newcomers | None = None
    places: PlaceTrace | None = None
    homes: Mapping[str, int] | None = None


class TrainingLoop:
    """Runs jobs to their end. A job that fails leaves; the others go on."""

    def __init__(
        self,
        workplace: Workplace,
        jobs: Sequence[TrainingJob],
        outputs: Mapping[str, JobOutput],
        *,
        on_finished: Callable[[TrainingJob], None],
    ) -> None:
        """``on_finished`` is called with a job that has done all of its steps."""
        self._place = workplace
        self._jobs = {job.name: job for job in jobs}
        self._outputs = outputs
        self._on_finished = on_finished
        self.clock = Clock()
        self._endings = Endings(
            outputs, workplace.facts, self.clock, workplace.events, workplace.writers
        )
        # Where jobs come and go, each is to have its share; else the run is to end soonest.
        policy = "makespan" if workplace.newcomers is None else "fair"
        homes, limits = workplace.homes, workplace.limits
        if homes is None:
            self._windows = Windows(self._jobs, limits, policy)
        else:
            self._windows = ZippedWindows(self._jobs, limits, homes, policy)
        self._course = Course(
            workplace.team,
            workplace.residents,
            self._windows,
            limits,
            workplace.should_stop,
        )
        self.done: dict[int, Message] = {}
        """What each of the other ranks said at its end."""

    @property
    def results(self) -> Mapping[str, JobResult]:
        """Of the jobs that have ended."""
        return self._endings.results

    def let_go(self, leaves: Sequence[Leave]) -> None:
        """Jobs that are on some stages but not among these; to be called before :meth:`run`."""
        for leave in leaves:
            self._course.let_go(leave)

    def run(self) -> Generator[None]:
        """Train until every job has ended or a stop is asked for; pauses after each place.

        Raises:
            PlanError: No plan can be made any more; what is done is saved.
        """
        for job in [job for job in self._jobs.values() if job.finished or job.tired]:
            self._succeed(job)  # resumed from its last step
        self._pause_where_asked(list(self._jobs))
        with self._windows:
            while (turn := self._next_turn()) is not None:
                self._run_turn(turn)
                yield
        while self._endings.waiting or len(self.done) < self._place.team.others:
            self._read_post()
            self._endings.settle()
            time.sleep(LOOK_S)
        if self._course.error is not None:
            raise self._course.error

    def _next_turn(self) -> Turn | None:
        """The next turn; None at the end. Waits where jobs may still come and none is there."""
        place = self._place.executor.position
        while True:
            self._read_post()
            self._endings.settle()
            self._admit()
            self._course.look_ahead(place)
            if not self._course.over(place) or not self._may_come():
                break
            self._course.rest(place)
            with self._place.team.recorder.span("wait", place, "jobs"):
                time.sleep(IDLE_S)
        if self._course.over(place):
            self._end(self._course.stop_reason or "")
        return self._course.take(place)

    def _admit(self) -> None:
        """Plan the jobs that have come, and are on all stages by now."""
        newcomers = self._place.newcomers
        for job in [] if newcomers is None else newcomers.take():
            self._jobs[job.name] = job
            if job.finished or job.tired:
                self._succeed(job)  # resumed from its last step
            else:
                self._course.join(job)
                self._pause_where_asked([job.name])

    def _may_come(self) -> bool:
        newcomers = self._place.newcomers
        return newcomers is not None and newcomers.open and not self._course.stop_reason

    def _end(self, reason: str) -> None:
        """Hear what the last places brought, and let the other ranks go."""
        while not self._place.executor.empty:
            for report in self._place.executor.backward():
                self._hear(report)
        for job in list(self._jobs.values()):
            self._pause(job, reason)
        self._course.end()
        if self._place.places is not None:
            self._place.places.close()

    def _run_turn(self, turn: Turn) -> None:
        executor, started = self._place.executor, time.perf_counter()
        if self._place.places is not None:
            for number, place in enumerate(turn.places, executor.position):
                self._place.places.ran(number, place)
        self._course.let_leave(executor.position)
        executor.forward(turn, _unknown)
        reports = executor.backward() if executor.full else ()
        if not turn.evaluates:
            self.clock.seconds += time.perf_counter() - started
        for report in reports:
            self._hear(report)

    def _hear(self, report: Report) -> None:
        """Give the jobs what a place brought, and say so."""
        place = report.place
        self._share_losses(place, report.losses)
        failed = zip(place.segments, report.failed, strict=True)
        self._fail_where_reported([segment.job for segment, bad in failed if bad])
        if place.kind == "train":
            numbers = zip(report.squares, report.verdicts, strict=True)
            results = [
                (job, job.finish_step(squares=squares, verdict=verdict))
                for (name, _), (squares, verdict) in zip(place.completes, numbers, strict=True)
                if (job := self._jobs.get(name)) is not None
            ]
            for job, result in results:
                self._contain(job, self._report_step, result)
        elif place.kind == "eval":
            for name, step in place.completes:
                if (job := self._jobs.get(name)) is not None:
                    self._contain(job, self._report_eval, step)
        self._look_at([name for name, _ in place.completes])

    def _share_losses(self, place: Place, losses: Sequence[float]) -> None:
        rest = iter(losses)
        for segment in place.segments:
            job = self._jobs.get(segment.job)
            for sample, labelled in zip(segment.samples, segment.labelled, strict=True):
                loss = next(rest)
                if job is not None:
                    job.add_loss(sample, loss, labelled)

    def _look_at(self, names: Sequence[str]) -> None:
        """Jobs that have taken a step, or were evaluated, may be at their end."""
        for job in [self._jobs[name] for name in names if name in self._jobs]:
            if job.finished or job.tired:
                self._succeed(job)
        self._pause_where_asked(names)

    def _pause_where_asked(self, names: Sequence[str]) -> None:
        for name in names:
            reason = self._place.should_stop_job(name)
            if reason and name in self._jobs:
                self._pause(self._jobs[name], reason)

    def _contain(
        self, job: TrainingJob, report: Callable[[TrainingJob, Any], None], what: object
    ) -> None:
        """What goes wrong with one job's files is that job's failure alone."""
        if job.name not in self._jobs:
            return
        try:
            report(job, what)
        except (OutputError, CheckpointError) as error:
            self._fail(job, str(error))

    def _report_step(self, job: TrainingJob, result: StepResult) -> None:
        self.clock.count(job.name, result.tokens)
        rate = self.clock.rate(job.name)
        self._place.events.step(job.name, result, tokens_per_s=rate)
        self._outputs[job.name].record_step(job, result, tokens_per_s=rate)
        if job.progress.bad_steps >= job.spec.max_bad_steps:
            self._fail(
                job,
                f"{job.progress.bad_steps} steps in a row up to step {job.step} had no finite loss "
                f"and gradient (loss {result.loss}, gradient norm {result.grad_norm}). What was "
                f"not finite first, in {job.first_bad}. Lower the "
                "learning rate or look at the data; max_bad_steps sets how many are allowed.",
            )

    def _report_eval(self, job: TrainingJob, step: int) -> None:
        loss, tokens = job.finish_eval(step)
        self._place.events.evaluated(job.name, step, loss)
        self._outputs[job.name].record_eval(step, loss, tokens)

    def _succeed(self, job: TrainingJob) -> None:
        self._on_finished(job)
        self._leave(job, save=True)
        self._endings.begin(job, "succeeded", job.tired)

    def _fail(self, job: TrainingJob, reason: str) -> None:
        self._leave(job, save=False)
        self._endings.fail(job, reason)

    def _pause(self, job: TrainingJob, reason: str) -> None:
        self._leave(job, save=True)
        self._endings.begin(job, "paused", reason)

    def _leave(self, job: TrainingJob, *, save: bool) -> None:
        del self._jobs[job.name]
        self._course.leave(job, save=save)

    def _read_post(self) -> None:
        for rank, message in self._place.team.post.poll():
            if message["kind"] == "shard":
                output = self._outputs.get(message["job"])
                if output is not None:  # else it has failed
                    output.add_shard(message["step"], Shard.from_json(message["shard"]))
            elif message["kind"] == "ready":
                assert self._place.newcomers is not None, "all jobs were there at the start"
                self._place.newcomers.hear(rank, message)
            elif message["kind"] == "failed":
                where = self._place.team.grid.place(rank)
                self._hear_failure(message["job"], f"{where}: {message['reason']}")
            elif message["kind"] == "capacity":
                self._lower(rank, message["tokens"])
            else:
                assert message["kind"] == "done", f"rank {rank} sent {message['kind']!r}"
                self.done[rank] = message

    def _lower(self, rank: int, capacity: int) -> None:
        """A stage has run out of memory; it is through with the place all the same."""
        before = self._course.capacity
        if capacity < before:
            self._course.lower(capacity)
            where = self._place.team.grid.place(rank)
            self._place.events.note(
                f"{where} ran out of memory, and ran the microbatch in parts. From now on a "
                f"microbatch has at most {capacity} tokens instead of {before}, and a longer "
                f"sample is alone; it stays so in this run. Set `capacity: {capacity}` at the top "
                "of the file (serve: --capacity) to begin like that, with max_seq_len at most as "
                "much."
            )

    def _hear_failure(self, name: str, reason: str) -> None:
        if name in self._jobs:
            self._fail(self._jobs[name], reason)
        else:
            self._endings.failed_late(name, reason)

    def _fail_where_reported(self, names: Sequence[str]) -> None:
        """A stage has given these jobs up; why stands in its message."""
        until = time.monotonic() + REASON_S
        for name in names:
            while name in self._jobs and time.monotonic() < until:
                self._read_post()
                time.sleep(0 if name not in self._jobs else LOOK_S)
            if name in self._jobs:
                self._fail(self._jobs[name], "a stage gave it up; its log says why.")


def _unknown() -> None:
    return None
