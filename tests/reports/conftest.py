"""Run folders: one of a real tiny run, and ones whose every time is known."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from lorafusion.planner.plan import Plan
from tests.plans.recorded_runs import write_ranks
from tests.plans.samples import SMALL, in_seconds
from tests.training.runs import four_jobs

MIB = 2**20
MEMORY = {"runtime": 100, "base": 50, "adapters": 3, "gradients": 2, "optimizer": 6}
FACTS: dict[str, Any] = {
    "format": 1,
    "started": "2026-01-02T03:04:05+00:00",
    "base_model": "models/tiny",
    "dtype": "float32",
    "device": {"kind": "cpu", "name": "a CPU"},
    "machine": {"cpu": "a CPU", "cores": 2},
    "versions": {"torch": "2"},
    "threads": 1,
    "stages": 2,
    "layers": [[0, 1], [1, 4]],
    "recompute": False,
    "deterministic": False,
    "capacity": 100,
    "peak_flops": 1e9,
    "peak_source": "a guess",
    "shape": {
        "hidden": 8,
        "layers": 4,
        "vocab": 32,
        "query": 8,
        "layer_parameters": 100,
        "parameters": 656,
    },
    "jobs": [
        {"name": n, "folder": n, "rank": 2, "adapter_parameters": 10, "token_flops": 60.0}
        for n in "abc"
    ],
}


@pytest.fixture(scope="session")
def real(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four jobs, profiled; do not change it.

    In a process of its own, as users have it: its resident set is then the run's. That of a
    long session of tests shrinks while a run goes on, and no byte is left for activations.
    """
    folder = tmp_path_factory.mktemp("real")
    run = {
        "base_model": str(tiny_base),
        "capacity": 96,
        "threads": 1,
        "jobs": [{**job, "max_seq_len": 96} for job in four_jobs(folder, steps=7)],
    }
    file = folder / "run.yaml"
    file.write_text(json.dumps(run))
    command = ["-m", "lorafusion", "train", file, "--output", folder / "run", "--trace"]
    home = {"LORAFUSION_HOME": str(folder / "home")}
    subprocess.run([sys.executable, *command], check=True, env={**os.environ, **home}, timeout=300)
    return folder / "run"


@pytest.fixture
def copied(real: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(real, tmp_path / "moved"))


@pytest.fixture
def write_known(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder of a run of two stages that ran exactly as simulated."""

    def write(
        plan: Plan = SMALL, facts: Mapping[str, Any] | None = FACTS, *, load_s: float = 1e-3
    ) -> Path:
        folder = tmp_path / "known"
        run = in_seconds(plan, load_s=load_s)
        write_ranks(folder / "trace", plan, run, [0.0, 7.0], with_waits=True)
        if facts is not None:
            (folder / "trace" / "run.json").write_text(json.dumps(facts))
        for stage, offset in enumerate([0.0, 7.0]):
            with (folder / "trace" / f"rank-{stage}.jsonl").open("a") as file:
                for at, total in ((1000.5, 170), (1001.0, 190), (1001.5, 180)):
                    sizes = {"total": total * MIB, **{k: v * MIB for k, v in MEMORY.items()}}
                    # The trace writes no spaces.
                    line = {"kind": "memory", "at": at - offset, **sizes}
                    file.write(json.dumps(line, separators=(",", ":")) + "\n")
        return folder

    return write


def write_metrics(folder: Path, losses: list[float], evals: Mapping[int, float]) -> None:
    """A job's ``metrics.jsonl`` as training writes it; TensorBoard's events would take minutes."""
    lines = [_line("eval", step, {"loss": loss}) for step, loss in evals.items() if step == 0]
    for step, loss in enumerate(losses, 1):
        values: dict[str, float | int] = {
            "epoch": step / 10,
            "loss": loss,
            "learning_rate": 1e-3 / step,
            "grad_norm": 1.0,
            "tokens": 10 + step,
            "trained_tokens": 5,
            "tokens_per_s": 100.0,
            "skipped": False,
        }
        lines.append(_line("train", step, values))
        if step in evals:
            lines.append(_line("eval", step, {"loss": evals[step]}))
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(lines))


def _line(kind: str, step: int, values: Mapping[str, float | int]) -> str:
    nonfinite = [name for name, value in values.items() if not math.isfinite(value)]
    more = {**dict.fromkeys(nonfinite), "nonfinite": nonfinite} if nonfinite else {}
    return json.dumps({"kind": kind, "step": step, "time": 1.0, **values, **more}) + "\n"
