"""What a run tells whoever watches it. Every method does nothing unless a watcher overrides it."""

from __future__ import annotations

from lorafusion.data.dataset import DatasetReport
from lorafusion.training.job import StepResult
from lorafusion.training.result import JobResult


class Events:
    """Called on the training thread, so it must be quick."""

    def begun(self) -> None:
        """The run's folders are its own, and nothing was refused; once, before all else."""

    def status(self, text: str) -> None:
        """What is being done now, when it may take a while."""

    def ready(self, name: str, report: DatasetReport, *, done: int, total_steps: int) -> None:
        """A job's data is loaded and its adapter is in place; ``done`` steps lie behind it."""

    def step(self, name: str, result: StepResult, *, tokens_per_s: float) -> None:
        """A job took (or skipped) a step; the rate is over all of its steps in this process."""

    def evaluated(self, name: str, step: int, loss: float) -> None:
        """Held-out loss of a job after ``step``."""

    def ended(self, result: JobResult) -> None:
        """A job succeeded, failed or was paused."""

    def note(self, text: str) -> None:
        """Something that the user should know."""


class Relay(Events):
    """Tells another all of it; subclasses do something beside."""

    def __init__(self, inner: Events) -> None:
        self._inner = inner

    def begun(self) -> None:
        """Passed on."""
        self._inner.begun()

    def status(self, text: str) -> None:
        """Passed on."""
        self._inner.status(text)

    def ready(self, name: str, report: DatasetReport, *, done: int, total_steps: int) -> None:
        """Passed on."""
        self._inner.ready(name, report, done=done, total_steps=total_steps)

    def step(self, name: str, result: StepResult, *, tokens_per_s: float) -> None:
        """Passed on."""
        self._inner.step(name, result, tokens_per_s=tokens_per_s)

    def evaluated(self, name: str, step: int, loss: float) -> None:
        """Passed on."""
        self._inner.evaluated(name, step, loss)

    def ended(self, result: JobResult) -> None:
        """Passed on."""
        self._inner.ended(result)

    def note(self, text: str) -> None:
        """Passed on."""
        self._inner.note(text)
