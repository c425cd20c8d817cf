"""The recorder that a run asks for."""

from __future__ import annotations

from lorafusion.training.grid import Grid
from lorafusion.training.options import Traces
from lorafusion.training.team import Recorder
from lorafusion.training.trace import Trace


def make_recorder(
    traces: Traces | None, rank: int = 0, grid: Grid | None = None, *, offset_s: float = 0.0
) -> Recorder:
    """One for this rank.

    Args:
        traces: What is kept where; None: nothing.
        rank: This one.
        grid: Of all ranks; None: there is one.
        offset_s: To add to this process's ``time.perf_counter()`` to get rank 0's.
    """
    grid = grid or Grid()
    stage, replica = grid.stage(rank), grid.replica(rank)
    folder = traces and traces.folder
    trace = Trace(folder, stage, grid.stages, replica=replica, offset_s=offset_s)
    if traces is None or traces.mode != "profile":
        return trace
    # Imports transformers and more than a run without a profile needs.
    from lorafusion.training.profiled import ProfiledRecorder

    return ProfiledRecorder(trace, traces.folder, rank)
