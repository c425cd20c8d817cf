"""What a run leaves to say: one result per job, one for the run, as plain data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorafusion.jobs.ranking import Ranking, Variant, rankings
from lorafusion.training.metrics import read_metrics
from lorafusion.training.records import Record, parse_record
from lorafusion.training.stage_times import StageTimes

JobState = Literal["running", "succeeded", "failed", "paused"]


@dataclass(frozen=True)
class Generation:
    """One held-out prompt, answered greedily.

    Attributes:
        prompt: What the model was given, special tokens and all.
        expected: The dataset's answer.
        before: The base's answer.
        after: The answer with the job's adapter.
    """

    prompt: str
    expected: str
    before: str
    after: str


@dataclass(frozen=True)
class JobResult:
    """How a job stands.

    Attributes:
        name: The job.
        state: ``paused``: stopped before its end; ``--resume`` goes on.
        reason: Why it failed or is paused.
        steps: Optimizer steps done.
        total_steps: Optimizer steps of the whole job; 0 when it failed before that was known.
        loss_first: Training loss of the first step, nats per trained token.
        loss_last: The same of the last step done.
        eval_before: Loss on held-out rows before training.
        eval_after: The newest such loss after training began.
        adapter_dir: The PEFT folder. None for a failed job: it is never exported.
        tokens: Tokens of the training samples seen.
        tokens_per_s: Tokens that this process trained on, over the seconds that all jobs trained.
        folder: Where its metrics, checkpoints and adapter are.
        generation: What the adapter changed, where that was asked for and a row is held out.
        sweep: Which choice of which sweep the job is: ``{"name": ..., "choice": {FIELD: VALUE}}``.
            None: of no sweep.
    """

    name: str
    state: JobState
    reason: str | None = None
    steps: int = 0
    total_steps: int = 0
    loss_first: float | None = None
    loss_last: float | None = None
    eval_before: float | None = None
    eval_after: float | None = None
    adapter_dir: str | None = None
    tokens: int = 0
    tokens_per_s: float = 0.0
    folder: str | None = None
    generation: Generation | None = None
    sweep: Mapping[str, Any] | None = None

    @property
    def variant(self) -> Variant | None:
        """The job among those of its sweep; None where it is of none."""
        if self.sweep is None:
            return None
        return Variant(
            job=self.name,
            sweep=self.sweep["name"],
            choice=self.sweep["choice"],
            state=self.state,
            steps=self.steps,
            total_steps=self.total_steps,
            held_out=self.eval_after,
            training=self.loss_last,
        )

    def metrics(self) -> list[Record]:
        """Every step and evaluation that was logged, those before an interruption included.

        Raises:
            OutputError: ``metrics.jsonl`` holds a line that is no record.
        """
        if self.folder is None:
            return []
        return [parse_record(self.name, line) for line in read_metrics(Path(self.folder))]


@dataclass(frozen=True)
class RunResult:
    """How a run went.

    Attributes:
        jobs: In the order of the job file.
        tokens_per_s: Real tokens of training samples over ``training_s``; 0 if nothing trained.
        training_s: Seconds in training microbatches and optimizer steps of this process, without
            loading and evaluation.
        wall_s: Seconds in all.
        peak_rss_mb: Most memory this process held, in MB of 10^6 bytes.
        base_sha256: Hash of the base's weights, the same before and after.
        stages: What each stage of the pipeline did with its time.
    """

    jobs: tuple[JobResult, ...]
    tokens_per_s: float
    training_s: float
    wall_s: float
    peak_rss_mb: float
    base_sha256: str
    stages: tuple[StageTimes, ...] = ()

    def __getitem__(self, name: str) -> JobResult:
        """The result of the job of that name."""
        for job in self.jobs:
            if job.name == name:
                return job
        raise KeyError(f"no job {name!r}; there are {', '.join(job.name for job in self.jobs)}")

    @property
    def succeeded(self) -> bool:
        """Whether every job did all of its steps."""
        return all(job.state == "succeeded" for job in self.jobs)

    def rankings(self) -> tuple[Ranking, ...]:
        """The sweeps, each with its jobs in the order of their losses."""
        return rankings(job.variant for job in self.jobs if job.variant is not None)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: a number that is not finite is None; with ``sweeps``, as :meth:`rankings`."""
        sweeps = [ranking.to_dict() for ranking in self.rankings()]
        return _finite({**dataclasses.asdict(self), "sweeps": sweeps})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
