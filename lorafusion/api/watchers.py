"""From the events of a run to callbacks, and to the records that an iterator hands out."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable

from lorafusion.api.callbacks import Callback, StopJob, StopRun
from lorafusion.data.dataset import DatasetReport
from lorafusion.launch.local import StopRequest
from lorafusion.training.events import Events
from lorafusion.training.job import StepResult
from lorafusion.training.records import EvalRecord, JobReady, Record, StepRecord
from lorafusion.training.result import JobResult


class Watchers(Events):
    """Tells every callback, and keeps what was not handed out yet.

    Attributes:
        records: Steps and evals, oldest first.
        error: The first exception of a callback.
    """

    def __init__(self, callbacks: Iterable[Callback], stop: StopRequest) -> None:
        """``stop`` is asked when a callback wants it, or fails."""
        self._callbacks = list(callbacks)
        self._stop = stop
        self.records: deque[Record] = deque()
        self.error: Exception | None = None

    def status(self, text: str) -> None:
        """What is being done now."""
        self._tell(lambda callback: callback.on_status(text))

    def ready(self, name: str, report: DatasetReport, *, done: int, total_steps: int) -> None:
        """A job is about to train."""
        ready = JobReady(name, done, total_steps, report)
        self._tell(lambda callback: callback.on_ready(ready), job=name)

    def step(self, name: str, result: StepResult, *, tokens_per_s: float) -> None:
        """A job took a step."""
        record = StepRecord(name, **dataclasses.asdict(result), tokens_per_s=tokens_per_s)
        self.records.append(record)
        self._tell(lambda callback: callback.on_step(record), job=name)

    def evaluated(self, name: str, step: int, loss: float) -> None:
        """A job was evaluated."""
        record = EvalRecord(name, step, loss)
        self.records.append(record)
        self._tell(lambda callback: callback.on_eval(record), job=name)

    def ended(self, result: JobResult) -> None:
        """A job ended."""
        self._tell(lambda callback: callback.on_end(result))

    def note(self, text: str) -> None:
        """Something to know."""
        self._tell(lambda callback: callback.on_note(text))

    def _tell(self, call: Callable[[Callback], None], *, job: str | None = None) -> None:
        for callback in list(self._callbacks):
            name = type(callback).__name__
            try:
                call(callback)
            except StopRun as request:
                self._stop.ask(_reason(name, request))
            except Exception as error:
                if isinstance(error, StopJob) and job is not None:
                    self._stop.ask_job(job, _reason(name, error))
                    continue
                self._callbacks.remove(callback)
                self.error = self.error or error
                self._stop.ask(f"callback {name} raised {error!r}")


def _reason(name: str, request: Exception) -> str:
    return f"stopped by {name}: {request}" if str(request) else f"stopped by {name}"
