"""``deterministic: true``: a job gives equal bytes alone, in any company, and after a stop."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from tests.training import runs
from tests.training.places import Bench

Jobs = list[dict[str, Any]]
DTYPES = ["float32", "bfloat16"]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    return runs.four_jobs(tmp_path_factory.mktemp("rows"), steps=8)


@pytest.fixture(scope="module", params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def together(
    dtype: str, jobs: Jobs, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("together")
    result = runs.run(folder, tiny_base, jobs, dtype=dtype, deterministic=True)
    assert [job.state for job in result.jobs] == ["succeeded"] * 4
    return folder


@pytest.mark.parametrize("which", range(4))
def test_alone(
    which: int, dtype: str, jobs: Jobs, together: Path, tiny_base: Path, tmp_path: Path
) -> None:
    job = jobs[which]
    runs.run(tmp_path, tiny_base, [job], dtype=dtype, capacity=50, deterministic=True)
    runs.assert_same_bytes(tmp_path / job["name"], together / job["name"])


@pytest.mark.parametrize("capacity", [64, 5000])
def test_other_capacity_and_order(
    capacity: int, dtype: str, jobs: Jobs, together: Path, tiny_base: Path, tmp_path: Path
) -> None:
    settings = {"dtype": dtype, "capacity": capacity, "deterministic": True}
    runs.run(tmp_path, tiny_base, jobs[::-1], **settings)
    for job in jobs:
        runs.assert_same_bytes(tmp_path / job["name"], together / job["name"])


def test_other_neighbours(
    dtype: str, jobs: Jobs, together: Path, tiny_base: Path, tmp_path: Path
) -> None:
    """Among them one of another name and seed with the same data and adapter settings."""
    stranger = {**jobs[0], "name": "stranger", "seed": 99, "learning_rate": 0.3}
    company = [jobs[3], stranger, jobs[0]]
    runs.run(tmp_path, tiny_base, company, dtype=dtype, deterministic=True)
    for job in (jobs[0], jobs[3]):
        runs.assert_same_bytes(tmp_path / job["name"], together / job["name"])


@pytest.mark.parametrize("calls", [3, 9, 14])
def test_stopped_and_resumed_with_other_capacity(
    calls: int, dtype: str, jobs: Jobs, together: Path, tiny_base: Path, tmp_path: Path
) -> None:
    settings = {"dtype": dtype, "deterministic": True}
    stop = runs.StopAfter(calls)
    first = runs.run(tmp_path, tiny_base, jobs, stop=stop, **settings)
    assert "paused" in {job.state for job in first.jobs}
    runs.run(tmp_path, tiny_base, jobs[::-1], resume=True, capacity=70, **settings)
    for job in jobs:
        runs.assert_same_bytes(tmp_path / job["name"], together / job["name"])


def test_the_mode_is_needed(jobs: Jobs, tiny_base: Path, tmp_path: Path) -> None:
    """Without it packing does show in the last bits, so the tests above compare something."""
    runs.run(tmp_path / "together", tiny_base, jobs, capacity=5000)
    # A step of it then takes several places. In one place, rows that come first in both cases may
    # be rounded alike, whatever stands behind them: that is up to the machine's GEMM.
    runs.run(tmp_path / "alone", tiny_base, jobs[:1], capacity=16)
    found, expected = (runs.state(tmp_path / run / "wide") for run in ("together", "alone"))
    assert not all(runs.same_bits(found[name], tensor) for name, tensor in expected.items())


def test_the_mean_loss_does_not_depend_on_the_order_of_samples(jobs: Jobs, tiny_base: Path) -> None:
    job = Bench(tiny_base, jobs[:1]).jobs["wide"]
    for order in permutations([(0, 1e16), (1, 1.0), (2, -1e16)]):
        for sample, loss in order:
            job.add_loss(sample, loss, 2)
        assert job.finish_eval(0) == (1 / 6, 6)
