"""How a run is to be done, beside what the job file says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lorafusion.planner.plan import ReplicaMode
from lorafusion.training.trace_file import FOLDER

if TYPE_CHECKING:
    from lorafusion.training.arrivals import Arrivals

TraceMode = Literal["off", "spans", "profile"]
"""What is kept of what each rank does: nothing; its spans; these, and torch's own profile."""


def trace_mode(asked: bool | None) -> TraceMode:
    """What a user asks for; None: nothing was said."""
    return "spans" if asked is None else "profile" if asked else "off"


@dataclass(frozen=True)
class Traces:
    """What is kept of what each rank does, and where.

    Attributes:
        folder: Of the traces.
        mode: See :data:`TraceMode`.
    """

    folder: Path
    mode: TraceMode

    @classmethod
    def of(cls, output: Path, mode: TraceMode) -> Traces | None:
        """Those of a run with this output folder; None where nothing is kept."""
        return None if mode == "off" else cls(output / FOLDER, mode)


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
        generations: Let the base and each finished adapter answer one held-out prompt.
        trace: What is kept of what each rank does, in :attr:`traces`.
        replica_mode: Whether replicas share every job.
        arrivals: Where jobs come from while the run goes on, on rank 0; None: from nowhere, and the
            run ends with its last job.
    """

    output: Path
    resume: bool
    overwrite: bool
    threads: int
    should_stop: Callable[[], str | None]
    should_stop_job: Callable[[str], str | None]
    generations: bool = False
    trace: TraceMode = "off"
    replica_mode: ReplicaMode = "auto"
    arrivals: Arrivals | None = None

    @property
    def traces(self) -> Traces | None:
        """What is kept where; None where nothing is."""
        return Traces.of(self.output, self.trace)
