"""Run on this machine, in this process: threads pinned, signals turned into a clean stop."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafusion.jobs.schema import RunSpec
from lorafusion.launch.stopping import Existing, StopRequest, stop_on_signals
from lorafusion.training.events import Events
from lorafusion.training.options import TraceMode
from lorafusion.training.result import RunResult

if TYPE_CHECKING:
    from lorafusion.training.arrivals import Arrivals


@dataclass(frozen=True)
class LocalOptions:
    """How a run in this process is to be done, beside what the job file says.

    Attributes:
        output: Folder of the run.
        existing: What to do with an earlier run's results in ``output``.
        stop: Stops the run and single jobs; says afterwards whether a signal ended the run.
        generations: Let the base and each finished adapter answer one held-out prompt.
        trace: What is kept of what is done when, in ``output``/trace.
        arrivals: Where jobs come from while the run goes on; None: from nowhere.
    """

    output: Path
    existing: Existing = "refuse"
    stop: StopRequest = field(default_factory=StopRequest)
    generations: bool = False
    trace: TraceMode = "spans"
    arrivals: Arrivals | None = None


def run_local(
    spec: RunSpec,
    *,
    output: Path,
    events: Events,
    stop: StopRequest,
    existing: Existing = "refuse",
    generations: bool = False,
) -> RunResult:
    """:func:`finish_local` with the attributes of :class:`LocalOptions`."""
    return finish_local(spec, LocalOptions(output, existing, stop, generations), events)


def finish_local(spec: RunSpec, options: LocalOptions, events: Events) -> RunResult:
    """:func:`iterate_local` to its end."""
    steps = iterate_local(spec, options, events)
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
    from lorafusion.training.options import RunOptions
    from lorafusion.training.run import train

    # Fixed for the whole run: a GEMM's rounding depends on how it is cut over threads.
    threads = spec.threads or len(os.sched_getaffinity(0))
    run_options = RunOptions(
        options.output,
        resume=options.existing == "resume",
        overwrite=options.existing == "overwrite",
        threads=threads,
        should_stop=announced(options.stop, events),
        should_stop_job=options.stop.job_reason,
        generations=options.generations,
        trace=options.trace,
        arrivals=options.arrivals,
    )
    with (
        pinned_arithmetic(threads, deterministic=spec.deterministic),
        stop_on_signals(options.stop),
    ):
        return (yield from train(spec, run_options, events))


def announced(stop: StopRequest, events: Events) -> Callable[[], str | None]:
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
def pinned_arithmetic(threads: int, *, deterministic: bool = False) -> Generator[None]:
    """Let torch use so many threads, and afterwards as many as before.

    ``deterministic``: on a GPU also let no op add in an order that changes from run to run; our
    kernels and attention look at the same switch of torch. It raises where an op has no such form.
    """
    import torch

    if deterministic:  # cuBLAS reads it when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    threads_before = torch.get_num_threads()
    before = torch.get_deterministic_debug_mode()
    filling: Any = torch.utils.deterministic  # a property, which its class does not tell
    filled = filling.fill_uninitialized_memory
    torch.set_num_threads(threads)
    if deterministic:
        torch.use_deterministic_algorithms(True)
        filling.fill_uninitialized_memory = False  # we read nothing that was not written
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        torch.set_deterministic_debug_mode(before)
        filling.fill_uninitialized_memory = filled
