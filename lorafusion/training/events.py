"""What a run tells whoever watches it. Every method does nothing unless a watcher overrides it."""

from __future__ import annotations

from lorafusion.data.dataset import DatasetReport
from lorafusion.training.job import StepResult
from lorafusion.training.result import JobResult


class Events:
    """Called on the training thread, so it must be quick."""

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
