"""How a run is asked to stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

# Slurm signals every process of a job, and torchrun passes on to its ranks what it gets.
SAME_S = 1.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)
Existing = Literal["refuse", "resume", "overwrite"]
"""What to do with an earlier run's results in the output folder."""


class StopRequest:
    """What has been asked to stop, and why: the run by a signal or a caller, single jobs."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._reason: str | None = None
        self._jobs: dict[str, str] = {}

    def ask(self, reason: str) -> None:
        """Ask the run to stop; the first reason is kept."""
        self._reason = self._reason or reason

    def ask_job(self, name: str, reason: str) -> None:
        """Ask one job to stop; its first reason is kept."""
        self._jobs.setdefault(name, reason)

    def forget_job(self, name: str) -> None:
        """Nothing is asked of the job any more."""
        self._jobs.pop(name, None)

    def reason(self) -> str | None:
        """Why the run is to stop, or None."""
        return self._reason if self.signal is None else f"stopped by {self.signal.name}"

    def job_reason(self, name: str) -> str | None:
        """Why a job is to stop, or None."""
        return self._jobs.get(name)


@contextmanager
def stop_on_signals(stop: StopRequest) -> Generator[None]:
    """Turn SIGINT and SIGTERM into a request, where this is the main thread.

    A second one of the same kind does what it would without this, unless it comes at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets the main thread alone set handlers
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    # None: set by other code than Python's, so it could not be put back.
    previous = {number: handler for number, handler in handlers.items() if handler is not None}

    asked: dict[int, float] = {}

    def request(number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now < asked.setdefault(number, now) + SAME_S:
            stop.signal = signal.Signals(number)
            return
        signal.signal(number, previous[signal.Signals(number)])
        signal.raise_signal(number)

    for number in previous:
        signal.signal(number, request)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
