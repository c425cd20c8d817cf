"""The recorder that a run asks for."""

from __future__ import annotations

from lorafusion.training.options import Traces
from lorafusion.training.team import Recorder
from lorafusion.training.trace import Trace


def make_recorder(
    traces: Traces | None, stage: int = 0, stages: int = 1, *, offset_s: float = 0.0
) -> Recorder:
    """One for this rank.

    Args:
        traces: What is kept where; None: nothing.
        stage: Of this rank.
        stages: Of the run.
        offset_s: To add to this process's ``time.perf_counter()`` to get rank 0's.
    """
    trace = Trace(traces and traces.folder, stage, stages, offset_s=offset_s)
    if traces is None or traces.mode != "profile":
        return trace
    # Imports transformers and more than a run without a profile needs.
    from lorafusion.training.profiled import ProfiledRecorder

    return ProfiledRecorder(trace, traces.folder, stage)
