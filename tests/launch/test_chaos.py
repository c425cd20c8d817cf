"""kill -9 at named points and at random instants: no job is lost, or trained twice, or changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.launch.chaos_program import OF_SUBMITTERS, POINTS
from tests.training import runs

pytestmark = pytest.mark.multiproc
ROOT = Path(__file__).parents[2]
SEEDS = 10
CHAOS = 100
TIMEOUT_S = 1500

Case = dict[str, Any]
Tell = Callable[[Sequence[str]], list[Case]]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return runs.four_jobs(tmp_path_factory.mktemp("rows"), steps=7)[:3]


@pytest.fixture(scope="module")
def expected(
    tiny_base: Path, jobs: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("expected")
    assert runs.run(folder, tiny_base, jobs, deterministic=True).succeeded
    return folder


@pytest.fixture
def tell(tiny_base: Path, jobs: list[dict[str, Any]], tmp_path: Path) -> Tell:
    """Runs cases, and says what came of them."""

    def run(cases: Sequence[str]) -> list[Case]:
        spec = runs.make_spec(tiny_base, jobs, deterministic=True)
        (tmp_path / "spec.json").write_text(spec.model_dump_json(exclude_unset=True))
        command = [sys.executable, "-m", "tests.launch.chaos_program", str(tmp_path), *cases]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
            capture_output=True, check=False, timeout=TIMEOUT_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def check(found: Sequence[Case], jobs: Sequence[dict[str, Any]], expected: Path) -> None:
    for case in found:
        assert [job["name"] for job in case["jobs"]] == [job["name"] for job in jobs], case
        for job in case["jobs"]:
            assert (job["state"], job["succeeded"]) == ("succeeded", 1), case
            ours, theirs = Path(job["folder"]), expected / job["name"]
            runs.assert_same_bytes(ours, theirs)
            name = Path("adapter", "adapter_model.safetensors")
            assert (ours / name).read_bytes() == (theirs / name).read_bytes()


def test_at_every_named_point(tell: Tell, jobs: list[dict[str, Any]], expected: Path) -> None:
    assert len(POINTS) >= 12
    found = tell([*POINTS, *OF_SUBMITTERS])
    check(found, jobs, expected)
    # Each of them was reached.
    assert {case["case"]: case["killed"] for case in found} == {
        **dict.fromkeys((*POINTS, *OF_SUBMITTERS), 1),
        "during restore": 2,
    }


def test_at_random_instants(tell: Tell, jobs: list[dict[str, Any]], expected: Path) -> None:
    found = tell([f"random-{seed}" for seed in range(SEEDS)])
    check(found, jobs, expected)
    assert sum(case["killed"] for case in found) > SEEDS


@pytest.mark.chaos
def test_at_many_random_instants(tell: Tell, jobs: list[dict[str, Any]], expected: Path) -> None:
    found = tell([f"random-{seed}" for seed in range(SEEDS, SEEDS + CHAOS)])
    check(found, jobs, expected)
