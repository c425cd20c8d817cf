"""The learning rate as a function of the job's own step: there is no scheduler state to save."""

from __future__ import annotations

import math

from lorafusion.jobs.schema import JobSpec


def warmup_steps(spec: JobSpec, total_steps: int) -> int:
    """Steps of linear warm-up; a ratio is rounded up, as transformers does."""
    if spec.warmup_steps is not None:
        return spec.warmup_steps
    return math.ceil(total_steps * spec.warmup_ratio)


def learning_rate(spec: JobSpec, step: int, total_steps: int) -> float:
    """The rate of ``step`` (from 1), with the formulas of transformers' ``get_scheduler``.

    After w warm-up steps ``constant`` stays, ``linear`` and ``cosine`` fall to 0 at the end of the
    last step; the first step of a warm-up has rate 0.
    """
    warmup = warmup_steps(spec, total_steps)
    done = step - 1
    if done < warmup:
        return spec.learning_rate * done / warmup
    if spec.lr_scheduler == "constant":
        return spec.learning_rate
    progress = (done - warmup) / max(1, total_steps - warmup)
    if spec.lr_scheduler == "linear":
        return spec.learning_rate * max(0.0, 1 - progress)
    return spec.learning_rate * max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))
