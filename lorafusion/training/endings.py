"""Jobs that train no more: what is left of them is put on the disk, while the others go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lorafusion.errors import CheckpointError, LorafusionError, OutputError
from lorafusion.training.clock import Clock
from lorafusion.training.events import Events
from lorafusion.training.job import TrainingJob
from lorafusion.training.output import ExportFacts, JobOutput, job_result
from lorafusion.training.result import JobResult, JobState


@dataclass(frozen=True)
class _Ending:
    job: TrainingJob
    state: JobState
    reason: str | None


class Endings:
    """What becomes of the jobs that leave."""

    def __init__(
        self, outputs: Mapping[str, JobOutput], facts: ExportFacts, clock: Clock, events: Events
    ) -> None:
        """``facts``: for the exported adapters. ``events`` is told of each end."""
        self._outputs = outputs
        self._facts = facts
        self._clock = clock
        self._events = events
        self._waiting: dict[str, _Ending] = {}
        self.results: dict[str, JobResult] = {}

    @property
    def waiting(self) -> bool:
        """Whether a job's last checkpoint is not on the disk yet."""
        return bool(self._waiting)

    def begin(self, job: TrainingJob, state: JobState, reason: str | None = None) -> None:
        """The job has done its last step in this run; once that is saved, it is exported."""
        try:
            self._outputs[job.name].expect(job)
        except (OutputError, CheckpointError) as error:
            self.fail(job, str(error))
        else:
            self._waiting[job.name] = _Ending(job, state, reason)

    def fail(self, job: TrainingJob, reason: str) -> None:
        """The job has no result."""
        output = self._outputs[job.name]
        output.withdraw()
        try:
            output.close()
        except (OutputError, CheckpointError) as error:
            if str(error) not in reason:
                reason = f"{reason} And: {error}"
        self._finish(job_result(job, "failed", reason=reason))

    def failed_late(self, name: str, reason: str) -> None:
        """A stage could not do the last step, or not save it."""
        ending = self._waiting.pop(name, None)
        if ending is not None:
            self.fail(ending.job, reason)

    def settle(self) -> None:
        """Export what is saved by now; does not wait for anything but that."""
        for name, ending in list(self._waiting.items()):
            try:
                if self._outputs[name].complete():
                    del self._waiting[name]
                    self._finish(self._export(ending))
            except LorafusionError as error:
                self._waiting.pop(name, None)
                self.fail(ending.job, str(error))

    def _export(self, ending: _Ending) -> JobResult:
        job, output = ending.job, self._outputs[ending.job.name]
        adapter = output.export(job, self._facts) if job.step else None
        output.close()
        return job_result(job, ending.state, reason=ending.reason, adapter=adapter)

    def _finish(self, result: JobResult) -> None:
        folder = str(self._outputs[result.name].folder)
        rate = self._clock.rate(result.name)
        result = replace(result, folder=folder, tokens_per_s=rate)
        self.results[result.name] = result
        self._events.ended(result)
