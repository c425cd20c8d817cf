"""mLoRA's order: the jobs take turns, one job in each microbatch, without a flush.

After its code (TUDB-Labs/mLoRA) and LoRAFusion's description of it: batch j of the first job, then
batch j of the second, and so on, then batch j+1. Jobs with fewer batches drop out of the turns.
"""

from __future__ import annotations

from collections.abc import Sequence

from lorafusion.planner.baselines.microbatches import (
    Baseline,
    Microbatch,
    check,
    first_fit,
    keep_distance,
    samples,
    to_plan,
)
from lorafusion.planner.plan import Limits
from lorafusion.planner.queue import JobQueue

__all__ = ["mlora"]


def mlora(queues: Sequence[JobQueue], limits: Limits) -> Baseline:
    """Plan in mLoRA's order, with no-ops where two steps of a job would stand too close.

    Each batch is packed by first fit, largest first, which is tighter than mLoRA's fixed number of
    samples: what the comparison shows is the order alone.

    Raises:
        PlanError: Evals, two queues of one name, or a sample that does not fit alone.
    """
    check(queues, limits)
    microbatches: list[Microbatch] = []
    for batch in range(max((len(queue.batches) for queue in queues), default=0)):
        for job in range(len(queues)):
            microbatches += first_fit(samples(queues, [job], batch), limits)
    return Baseline(to_plan(keep_distance(microbatches, queues, limits), queues, limits))
