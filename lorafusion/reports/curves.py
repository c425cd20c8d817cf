"""Curves of a job, thinned out so that the page stays small: losses, held-out losses, rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorafusion.reports.rank_lines import MemorySample
from lorafusion.reports.reading import JobReading
from lorafusion.training.records import EvalRecord, StepRecord

__all__ = ["Curve", "curve", "points_for", "smoothed", "thin_memory"]

ALL_POINTS, LEAST, MOST = 30_000, 40, 400
"""Of all jobs together, and of one; a point takes 40 bytes in the data and 40 in the drawings."""
MEMORY_POINTS = 300


@dataclass(frozen=True, slots=True)
class Curve:
    """One job's curves; a value that is not finite is None.

    Attributes:
        name: The job.
        steps: Of the kept points.
        losses: Training losses at these.
        smooth: The smoothed ones, smoothed before they were thinned out.
        rates: Learning rates at these.
        evals: (step, held-out loss).
    """

    name: str
    steps: tuple[int, ...]
    losses: tuple[float | None, ...]
    smooth: tuple[float | None, ...]
    rates: tuple[float, ...]
    evals: tuple[tuple[int, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """For the page's script."""
        return {
            "name": self.name,
            "steps": self.steps,
            "losses": [_short(value) for value in self.losses],
            "smooth": [_short(value) for value in self.smooth],
            "rates": [_short(value) for value in self.rates],
            "evals": [[step, _short(loss)] for step, loss in self.evals],
        }


def points_for(jobs: int) -> int:
    """Points of each of so many jobs."""
    return max(LEAST, min(MOST, ALL_POINTS // max(1, jobs)))


def curve(job: JobReading, most: int) -> Curve:
    """A job's curves of at most about ``most`` points: of each bin the extremes stay."""
    steps = [record for record in job.records if isinstance(record, StepRecord)]
    evals = [
        (record.step, record.loss)
        for record in job.records
        if isinstance(record, EvalRecord) and math.isfinite(record.loss)
    ]
    losses = [record.loss for record in steps]
    smooth = smoothed(losses)
    kept = _extremes(losses, most)
    every = math.ceil(len(evals) / most) or 1
    return Curve(
        name=job.name,
        steps=tuple(steps[i].step for i in kept),
        losses=tuple(_finite(losses[i]) for i in kept),
        smooth=tuple(_finite(smooth[i]) for i in kept),
        rates=tuple(steps[i].learning_rate for i in kept),
        evals=tuple(evals[::-1][::every][::-1]),
    )


def smoothed(losses: Sequence[float]) -> list[float]:
    """A running mean whose weights fall off over a tenth of the steps, at least over 5.

    Debiased: the first value is the first loss. A loss that is not finite is passed over.
    """
    decay = 1 - 1 / max(5.0, len(losses) / 10)
    total = weight = 0.0
    found: list[float] = []
    for loss in losses:
        if math.isfinite(loss):
            total, weight = decay * total + loss, decay * weight + 1
        found.append(total / weight if weight else math.nan)
    return found


def thin_memory(samples: Sequence[MemorySample], most: int = MEMORY_POINTS) -> list[MemorySample]:
    """At most so many samples: of each bin the fullest one."""
    width = math.ceil(len(samples) / most) or 1
    bins = (samples[i : i + width] for i in range(0, len(samples), width))
    return [max(part, key=lambda sample: sample.total) for part in bins]


def _extremes(values: Sequence[float], most: int) -> list[int]:
    """Indices of the first, the last, and of the least and the greatest value of equal bins."""
    if len(values) <= most:
        return list(range(len(values)))
    count = max(1, (most - 2) // 2)
    kept = {0, len(values) - 1}
    for part in range(count):
        start, stop = part * len(values) // count, (part + 1) * len(values) // count
        finite = [i for i in range(start, stop) if math.isfinite(values[i])]
        if finite:
            kept |= {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)}
    return sorted(kept)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
