"""A job's losses and weights do not depend on who shares its microbatches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorafusion.planner.plan import Place, PlannedSegment
from tests.training import runs
from tests.training.places import Bench

Jobs = list[dict[str, Any]]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    return runs.four_jobs(tmp_path_factory.mktemp("rows"))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_float64_together_equals_alone(
    tied: bool, jobs: Jobs, tiny_base: Path, untied_base: Path, tmp_path: Path
) -> None:
    base = tiny_base if tied else untied_base
    weights, losses = differences(base, jobs, tmp_path, dtype="float64", by=runs.worst_difference)
    runs.figure("float64, change of weights after 20 steps, worst tensor", weights)
    runs.figure("float64, losses of 20 steps", losses)
    assert weights <= 1e-9
    assert losses <= 1e-9


def test_float32_together_is_near_alone(jobs: Jobs, tiny_base: Path, tmp_path: Path) -> None:
    # AdamW's first step is a sign, so rounding flips a few entries.
    weights, losses = differences(
        tiny_base, jobs, tmp_path, dtype="float32", by=runs.total_difference
    )
    runs.figure("float32, change of weights after 20 steps", weights)
    runs.figure("float32, losses of 20 steps", losses)
    assert weights <= 1e-3
    assert losses <= 1e-5


def differences(
    base: Path, jobs: Jobs, folder: Path, *, dtype: str, by: Callable[..., float]
) -> tuple[float, float]:
    """How far a job in company is from the same job alone, at most: weights, losses.

    Three companies: all four; all four in another order, with another capacity and each with a
    twin whose tensors have the same shapes; one neighbour.
    """
    twins = [{**job, "name": f"{job['name']}-twin", "seed": 50 + i} for i, job in enumerate(jobs)]
    # Two behind their twins and two before: leaks to either side are seen.
    pairs = [
        sorted(pair, key=lambda j: j["name"], reverse=i % 2 == 0)
        for i, pair in enumerate(zip(jobs, twins, strict=True))
    ]
    company = [job for pair in reversed(pairs) for job in pair]
    runs.run(folder / "all", base, jobs, dtype=dtype)
    runs.run(folder / "reversed", base, company, dtype=dtype, capacity=300)
    runs.run(folder / "pair", base, jobs[1::-1], dtype=dtype, capacity=64)
    runs.run(folder / "pair", base, jobs[2:], dtype=dtype, capacity=64)
    weights = losses = 0.0
    for job in jobs:
        runs.run(folder / "alone", base, [job], dtype=dtype, capacity=50)
        alone = folder / "alone" / job["name"]
        start = runs.initial(base, job, dtype)
        expected = runs.change(runs.state(alone), start)
        assert {("train", t + 1) for t in range(job["max_steps"])} <= runs.losses(alone).keys()
        for company in ("all", "reversed", "pair"):
            together = folder / company / job["name"]
            weights = max(weights, by(runs.change(runs.state(together), start), expected))
            losses = max(losses, runs.loss_difference(runs.losses(together), runs.losses(alone)))
    return weights, losses


def gradients(bench: Bench, job: str) -> dict[int, torch.Tensor]:
    sums = bench.jobs[job].shard.gradients
    sums.close()
    return dict(enumerate(sums.flat.views(sums.finish(lambda _: None))))  # no replica has more


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float64", 1e-12)])
def test_gradients_of_the_first_step(dtype: str, bound: float, jobs: Jobs, tiny_base: Path) -> None:
    """Every gradient tensor itself, before norm, clipping and AdamW could hide something."""
    together = Bench(tiny_base, jobs, dtype=dtype)
    together.randomise_b()
    segments = tuple(together.first_step(job["name"]) for job in jobs)
    halves = [tuple(half(segment, i) for segment in segments) for i in (0, 1)]
    for part in halves:
        together.run(Place("train", tuple(segment for segment in part if segment.samples)))
    worst = 0.0
    for job in jobs:
        alone = Bench(tiny_base, [job], dtype=dtype)
        alone.randomise_b()
        alone.run(Place("train", (alone.first_step(job["name"]),)))
        expected = gradients(alone, job["name"])
        found = gradients(together, job["name"])
        assert all(gradient.abs().max() > 0 for gradient in expected.values())
        worst = max(worst, runs.worst_difference(found, expected))
    runs.figure(f"{dtype}, gradients of the first step, worst tensor", worst)
    assert worst <= bound


def half(segment: PlannedSegment, which: int) -> PlannedSegment:
    pick = slice(which, None, 2)
    return PlannedSegment(segment.job, segment.step, segment.samples[pick], segment.lengths[pick])


def test_initial_weights_come_from_seed_and_module_alone(jobs: Jobs, tiny_base: Path) -> None:
    """Not from the slot, the neighbours, the order, or the rank of others."""
    forward, backward = Bench(tiny_base, jobs), Bench(tiny_base, jobs[::-1])
    for job in jobs:
        ours = forward.jobs[job["name"]].shard.parameters
        theirs = backward.jobs[job["name"]].shard.parameters
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
