"""Jobs that train no more: what is left of them is put on the disk, while the others go on."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path

from lorafusion.errors import CheckpointError, LorafusionError, OutputError
from lorafusion.training.clock import Clock
from lorafusion.training.events import Events
from lorafusion.training.job import TrainingJob
from lorafusion.training.output import ExportFacts, JobOutput, job_result
from lorafusion.training.result import JobResult, JobState


@dataclass
class _Ending:
    job: TrainingJob
    state: JobState
    reason: str | None
    export: Future[Path] | None = None


class Endings:
    """What becomes of the jobs that leave."""

    def __init__(
        self,
        outputs: Mapping[str, JobOutput],
        facts: ExportFacts,
        clock: Clock,
        events: Events,
        writers: Executor,
    ) -> None:
        """Nobody has ended.

        Args:
            outputs: By job.
            facts: For the exported adapters.
            clock: Knows what each job's speed was.
            events: Told of each end.
            writers: Where adapters are exported.
        """
        self._outputs = outputs
        self._facts = facts
        self._clock = clock
        self._events = events
        self._writers = writers
        self._waiting: dict[str, _Ending] = {}
        self.results: dict[str, JobResult] = {}

    @property
    def waiting(self) -> bool:
        """Whether a job's last checkpoint or its adapter is not on the disk yet."""
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
            if ending.export is not None:
                wait([ending.export])  # else it would bring back what is withdrawn
            self.fail(ending.job, reason)

    def settle(self) -> None:
        """Export what is saved by now, in the background; does not wait for anything."""
        for name, ending in list(self._waiting.items()):
            try:
                if self._is_over(ending):
                    del self._waiting[name]
                    self._finish(self._close(ending))
            except LorafusionError as error:
                self._waiting.pop(name, None)
                self.fail(ending.job, str(error))

    def _is_over(self, ending: _Ending) -> bool:
        """Whether all is on the disk; begins with the adapter once the last checkpoint is."""
        job, output = ending.job, self._outputs[ending.job.name]
        if ending.export is not None:
            return ending.export.done()
        if not output.complete():
            return False
        if job.step:
            ending.export = self._writers.submit(output.export, job, self._facts)
        return not job.step

    def _close(self, ending: _Ending) -> JobResult:
        adapter = None if ending.export is None else ending.export.result()
        self._outputs[ending.job.name].close()
        return job_result(ending.job, ending.state, reason=ending.reason, adapter=adapter)

    def _finish(self, result: JobResult) -> None:
        folder = str(self._outputs[result.name].folder)
        rate = self._clock.rate(result.name)
        result = replace(result, folder=folder, tokens_per_s=rate)
        self.results[result.name] = result
        self._events.ended(result)
