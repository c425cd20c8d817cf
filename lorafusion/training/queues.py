"""What of a job is to be planned, before or without training it."""

from __future__ import annotations

from lorafusion.adapters.lora import LoraConfig
from lorafusion.jobs.schema import JobSpec
from lorafusion.planner.queue import JobQueue
from lorafusion.training.data import JobData

__all__ = ["adapter_rank", "checkpoint_is_due", "eval_is_due", "whole_queue"]


def eval_is_due(spec: JobSpec, data: JobData, step: int) -> bool:
    """Whether the held-out samples are evaluated after ``step`` (0 = before training)."""
    if not data.held_out_indices:
        return False
    every = spec.eval.every
    return step in (0, data.order.total_steps) or (every is not None and step % every == 0)


def checkpoint_is_due(spec: JobSpec, step: int, total_steps: int) -> bool:
    """Whether there is to be a checkpoint of ``step``, which was just done."""
    every = spec.save_every
    return step == total_steps or (every is not None and step % every == 0)


def adapter_rank(spec: JobSpec) -> int:
    """Rank of the job's adapter, for the cost model; 0 where its method has none."""
    return spec.adapter.r if isinstance(spec.adapter, LoraConfig) else 0


def whole_queue(spec: JobSpec, data: JobData) -> JobQueue:
    """All steps and evals of the job."""
    steps = range(1, data.order.total_steps + 1)
    due = [step for step in (0, *steps) if eval_is_due(spec, data, step)]
    return JobQueue(
        spec.name,
        tuple(data.batch(step) for step in steps),
        {step: data.eval_batch(step) for step in due},
        rank=adapter_rank(spec),
    )
