"""Thinning keeps what stands out, and smoothing is a mean."""

from __future__ import annotations

import math
import random

import pytest

from lorafusion.reports.curves import curve, points_for, smoothed, thin_memory
from lorafusion.reports.rank_lines import MemorySample
from lorafusion.reports.reading import JobReading
from lorafusion.training.records import EvalRecord, Record, StepRecord


def job(losses: list[float], evals: dict[int, float] | None = None) -> JobReading:
    records: list[Record] = [
        StepRecord("a", step, 0.1, loss, 1e-3, 1.0, 10, 5, 100.0, False)
        for step, loss in enumerate(losses, 1)
    ]
    records += [EvalRecord("a", step, loss) for step, loss in (evals or {}).items()]
    return JobReading("a", {}, {}, tuple(records))


def test_spikes_and_ends_stay() -> None:
    rng = random.Random(1)
    losses = [2 + rng.random() for _ in range(20_000)]
    losses[7_777], losses[12_345] = 50.0, 0.1
    found = curve(job(losses, {20_000: 2.5, 10_000: math.nan}), 300)
    assert 150 < len(found.steps) <= 300
    assert found.steps[0] == 1 and found.steps[-1] == 20_000
    assert {7_778, 12_346} <= set(found.steps) and {50.0, 0.1} <= set(found.losses)
    assert list(found.steps) == sorted(found.steps)
    assert found.evals == ((20_000, 2.5),)


def test_few_steps_are_all_there() -> None:
    found = curve(job([3.0, math.nan, 2.0]), 300)
    assert found.steps == (1, 2, 3) and found.losses == (3.0, None, 2.0)
    assert found.smooth[1] == 3.0


def test_smoothed() -> None:
    assert smoothed([2.0] * 50) == pytest.approx([2.0] * 50)
    noisy = [(-1) ** i + 5.0 for i in range(400)]
    assert max(abs(value - 5) for value in smoothed(noisy)[50:]) < 0.1
    assert smoothed([7.0, 1.0])[0] == 7.0 and math.isnan(smoothed([math.nan])[0])


def test_memory_keeps_the_fullest() -> None:
    samples = [MemorySample(float(i), (i % 997,)) for i in range(5_000)]
    found = thin_memory(samples, 300)
    assert 250 < len(found) <= 300 and max(s.total for s in found) == 996


def test_points() -> None:
    assert points_for(1) == 400 and points_for(100) == 300 and points_for(100_000) == 40
