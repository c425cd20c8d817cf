"""What happened to a job while it trained, as plain data: for callbacks, iterators and readers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from lorafusion.data.dataset import DatasetReport


@dataclass(frozen=True)
class JobReady:
    """A job's data is loaded and its adapter is in place.

    Attributes:
        job: Its name.
        step: Optimizer steps that lie behind it: more than 0 when it is resumed.
        total_steps: Optimizer steps of the whole job.
        data: What became of the rows of its dataset.
    """

    job: str
    step: int
    total_steps: int
    data: DatasetReport


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step of one job.

    Attributes:
        job: Its name.
        step: Counted from 1.
        epoch: Passes over the data that are done after it.
        loss: Mean over the trained tokens of its global batch, in nats; before the update.
        learning_rate: The rate of this step.
        grad_norm: Euclidean norm of the gradient before clipping.
        tokens: Tokens of its global batch.
        trained_tokens: Those of them that are targets.
        tokens_per_s: ``tokens`` of all of the job's steps in this process over the seconds that
            all jobs trained.
        skipped: Loss or gradient was not finite, and nothing was updated.
        kind: Tells it from an :class:`EvalRecord`.
    """

    job: str
    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    trained_tokens: int
    tokens_per_s: float
    skipped: bool
    kind: Literal["train"] = "train"


@dataclass(frozen=True)
class EvalRecord:
    """The held-out loss of one job.

    Attributes:
        job: Its name.
        step: The steps done before; 0 is before training.
        loss: Mean over the trained tokens of the held-out samples, in nats.
        kind: Tells it from a :class:`StepRecord`.
    """

    job: str
    step: int
    loss: float
    kind: Literal["eval"] = "eval"


Record = StepRecord | EvalRecord


def parse_record(job: str, line: Mapping[str, Any]) -> Record:
    """A record of ``metrics.jsonl``, see :class:`lorafusion.training.metrics.JobMetrics`.

    A number that was not finite is NaN.
    """
    kind = StepRecord if line["kind"] == "train" else EvalRecord
    nonfinite = dict.fromkeys(line.get("nonfinite", ()), math.nan)
    values: dict[str, Any] = {**line, "job": job, **nonfinite}
    return kind(**{field.name: values[field.name] for field in fields(kind)})
