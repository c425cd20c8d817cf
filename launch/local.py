"""Run on this machine, in this process: threads pinned, signals turned into a clean stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Literal

from lorafusion.jobs.schema import RunSpec
from lorafusion.training.events import Events
from lorafusion.training.result import RunResult

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

    def reason(self) -> str | None:
        """Why the run is to stop, or None."""
        return self._reason if self.signal is None else f"stopped by {self.signal.name}"

    def job_reason(self, name: str) -> str | None:
        """Why a job is to stop, or None."""
        return self._jobs.get(name)


@dataclass(frozen=True)
class LocalOptions:
    """How a run in this process is to be done, beside what the job file says.

    Attributes:
        output: Folder of the run.
        existing: What to do with an earlier run's results in ``output``.
        stop: Stops the run and single jobs; says afterwards whether a signal ended the run.
        generations: Let the base and each finished adapter answer one held-out prompt.
    """

    output: Path
    existing: Existing = "refuse"
    stop: StopRequest = field(default_factory=StopRequest)
    generations: bool = False


def run_local(
    spec: RunSpec,
    *,
    output: Path,
    events: Events,
    stop: StopRequest,
    existing: Existing = "refuse",
    generations: bool = False,
) -> RunResult:
    """:func:`iterate_local` to its end, with the attributes of :class:`LocalOptions`."""
    steps = iterate_local(spec, LocalOptions(output, existing, stop, generations), events)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def iterate_local(
    spec: RunSpec, options: LocalOptions, events: Events
) -> Generator[None, None, RunResult]:
    """Train all jobs of ``spec`` in this process, pausing after each microbatch.

    On the main thread SIGINT and SIGTERM end the run after the running microbatch: what each job
    has finished is saved. A second one of the same kind does what it always does. Handlers and
    torch's number of threads are afterwards as they were. See
    :func:`lorafusion.training.run.train` for errors.
    """
    from lorafusion.training.run import RunOptions, train

    # Fixed for the whole run: a GEMM's rounding depends on how it is cut over threads.
    threads = spec.threads or len(os.sched_getaffinity(0))
    run_options = RunOptions(
        options.output,
        resume=options.existing == "resume",
        overwrite=options.existing == "overwrite",
        threads=threads,
        should_stop=_announced(options.stop, events),
        should_stop_job=options.stop.job_reason,
        generations=options.generations,
    )
    with _pinned_threads(threads), _stop_on_signals(options.stop):
        return (yield from train(spec, run_options, events))


def _announced(stop: StopRequest, events: Events) -> Callable[[], str | None]:
    """``stop.reason``, which also tells who watches when it is first seen."""
    seen = False

    def reason() -> str | None:
        nonlocal seen
        found = stop.reason()
        if found and not seen:
            seen = True
            again = "; a second one ends at once" if stop.signal else ""
            events.status(f"{found}: saving what is done{again}")
        return found

    return reason


@contextmanager
def _pinned_threads(threads: int) -> Generator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _stop_on_signals(stop: StopRequest) -> Generator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets the main thread alone set handlers
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    # None: set by other code than Python's, so it could not be put back.
    previous = {number: handler for number, handler in handlers.items() if handler is not None}

    def request(number: int, _frame: FrameType | None) -> None:
        stop.signal = signal.Signals(number)
        signal.signal(number, previous[signal.Signals(number)])

    for number in previous:
        signal.signal(number, request)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
