"""What a server says: a line when a job begins, ends or is in trouble, none for its steps."""

from __future__ import annotations

import time

from rich.console import Console

from lorafusion.cli import figures
from lorafusion.data.dataset import DatasetReport
from lorafusion.training.events import Events
from lorafusion.training.result import JobResult


class Lines(Events):
    """Prints; ``logs`` shows the steps."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def status(self, text: str) -> None:
        """What is being done."""
        self._print(text)

    def ready(self, name: str, report: DatasetReport, *, done: int, total_steps: int) -> None:
        """A job runs."""
        from_where = f", from step {done}" if done else ""
        self._print(f"{name} runs: {total_steps} steps{from_where}")

    def ended(self, result: JobResult) -> None:
        """A job is here no more."""
        reason = "" if result.reason is None else f": {result.reason}"
        loss = "" if result.loss_last is None else f", loss {figures.loss(result.loss_last)}"
        steps = f"step {result.steps}/{result.total_steps}"
        self._print(f"{result.name} {result.state}, {steps}{loss}{reason}")

    def note(self, text: str) -> None:
        """Something that whoever runs the server should know."""
        self._print(f"note: {text}")

    def _print(self, text: str) -> None:
        now = time.strftime("%H:%M:%S")
        self._console.print(f"{now} {text}", markup=False, highlight=False, soft_wrap=True)
