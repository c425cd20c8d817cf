"""Run on this machine, in this process: threads pinned, signals turned into a clean stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
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
    """Set by the first signal; a second one of the same kind does what it always does."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def reason(self) -> str | None:
        """Why to stop, or None."""
        return None if self.signal is None else f"stopped by {self.signal.name}"


def run_local(
    spec: RunSpec,
    *,
    output: Path,
    events: Events,
    stop: StopRequest,
    existing: Existing = "refuse",
    generations: bool = False,
) -> RunResult:
    """Train all jobs of ``spec`` in this process.

    SIGINT and SIGTERM end the run after the running microbatch: what each job has finished is
    saved. See :func:`lorafusion.training.run.train` for errors.

    Args:
        spec: The jobs and their base.
        output: Folder of the run.
        events: Told what happens.
        stop: Says afterwards whether a signal ended the run.
        existing: What to do with an earlier run's results in ``output``.
        generations: Let the base and each finished adapter answer one held-out prompt.
    """
    import torch

    from lorafusion.training.run import RunOptions, train

    # Fixed for the whole run: a GEMM's rounding depends on how it is cut over threads.
    threads = spec.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    options = RunOptions(
        output,
        resume=existing == "resume",
        overwrite=existing == "overwrite",
        threads=threads,
        should_stop=_announced(stop, events),
        generations=generations,
    )
    with _stop_on_signals(stop):
        return train(spec, options, events)


def _announced(stop: StopRequest, events: Events) -> Callable[[], str | None]:
    """``stop.reason``, which also tells who watches when it is first seen."""
    seen = False

    def reason() -> str | None:
        nonlocal seen
        found = stop.reason()
        if found and not seen:
            seen = True
            events.status(f"{found}: saving what is done; a second one ends at once")
        return found

    return reason


@contextmanager
def _stop_on_signals(stop: StopRequest) -> Generator[None]:
    previous = {number: signal.getsignal(number) for number in SIGNALS}

    def request(number: int, _frame: FrameType | None) -> None:
        stop.signal = signal.Signals(number)
        signal.signal(number, previous[signal.Signals(number)])

    for number in SIGNALS:
        signal.signal(number, request)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
