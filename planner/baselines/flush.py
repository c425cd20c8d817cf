"""One job at a time with a flush after each global batch: ordinary pipelined training."""

from __future__ import annotations

from collections.abc import Sequence

from lorafusion.planner.baselines.microbatches import (
    Baseline,
    Microbatch,
    check,
    first_fit,
    samples,
    to_plan,
)
from lorafusion.planner.plan import Limits
from lorafusion.planner.queue import JobQueue

__all__ = ["each_alone", "one_after_another"]


def one_after_another(queues: Sequence[JobQueue], limits: Limits) -> Baseline:
    """All steps of the first job, then all of the second, and so on.

    Each step is packed by first fit, largest first; the pipeline drains after it. The flush keeps
    the steps apart, so :meth:`Baseline.unflushed` is what the verifier can check.

    Raises:
        PlanError: Evals, two queues of one name, or a sample that does not fit alone.
    """
    check(queues, limits)
    microbatches: list[Microbatch] = []
    flush_after: set[int] = set()
    for job, queue in enumerate(queues):
        if not queue.batches:
            continue
        microbatches += [[] for _ in range(len(microbatches), queue.ready_at)]
        for batch in range(len(queue.batches)):
            microbatches += first_fit(samples(queues, [job], batch), limits)
            flush_after.add(len(microbatches) - 1)
    return Baseline(to_plan(microbatches, queues, limits), frozenset(flush_after))


def each_alone(queues: Sequence[JobQueue], limits: Limits) -> dict[str, Baseline]:
    """The same for each job in a run of its own, by the job's name.

    Raises:
        PlanError: As for :func:`one_after_another`.
    """
    check(queues, limits)
    return {queue.name: one_after_another([queue], limits) for queue in queues}
