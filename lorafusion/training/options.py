"""How a run is to be done, beside what the job file says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunOptions:
    """The same on all ranks, but for who may stop what.

    Attributes:
        output: Folder of the run.
        resume: Go on from each job's newest checkpoint.
        overwrite: Remove an earlier run's results first.
        threads: CPU threads in use, part of what bits depend on.
        should_stop: Asked between microbatches; a reason means stop.
        should_stop_job: Asked of a job after its steps and evals; a reason means pause it.
        trace: Keep which places were run, beside the ranks' own traces.
        generations: Let the base and each finished adapter answer one held-out prompt.
    """

    output: Path
    resume: bool
    overwrite: bool
    threads: int
    should_stop: Callable[[], str | None]
    should_stop_job: Callable[[str], str | None]
    generations: bool = False
    trace: bool = False
