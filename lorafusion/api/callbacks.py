"""What a user's code is told of a run, and how it stops one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorafusion.training.records import EvalRecord, JobReady, StepRecord
    from lorafusion.training.result import JobResult


class StopJob(Exception):
    """Raise it in ``on_ready``, ``on_step`` or ``on_eval``: the job told of stops there.

    Its state is saved, its adapter written, and it counts as paused: it can be resumed. The others
    go on.
    """


class StopRun(Exception):
    """Raise it in any method of a callback: all jobs stop as with :class:`StopJob`."""


class Callback:
    """Derive from it, and override what you want to be told of. By default nothing happens.

    Methods are called on the thread that trains, between microbatches: training waits for them.
    An exception ends the run cleanly, with every job's state saved, and is then raised by
    :func:`lorafusion.train`; the callback that raised it is not called again.
    """

    def on_status(self, text: str) -> None:
        """What is being done now, when it may take a while, such as loading the base."""

    def on_note(self, text: str) -> None:
        """Something that the user should know."""

    def on_ready(self, ready: JobReady) -> None:
        """A job's data is loaded and its adapter is in place."""

    def on_step(self, record: StepRecord) -> None:
        """A job took an optimizer step, or skipped it."""

    def on_eval(self, record: EvalRecord) -> None:
        """A job's held-out loss was measured."""

    def on_end(self, result: JobResult) -> None:
        """A job succeeded, failed or was paused; its files are complete."""
