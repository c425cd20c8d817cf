"""The promises on a real model: SmolLM2-135M with short samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lorafusion.jobs.schema import JobSpec
from tests.training import runs
from tests.training.peft_loop import train_with_peft

# Two threads on a machine that is busy otherwise took ten times as long as one.
THREADS = 1
STEPS = 20

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Short samples and small batches; ``regex`` adapts the last layers alone."""
    four = runs.four_jobs(tmp_path_factory.mktemp("rows"), steps=STEPS)
    for job, size in zip(four, (2, 3, 1, 2), strict=True):
        job["global_batch_size"] = size
        job.pop("eval", None)
    four[2]["adapter"]["target_modules"] = r"model\.layers\.2[5-9]\.mlp\..*_proj"
    return four


def test_float32_after_20_steps(smollm2: Path, jobs: list[dict[str, Any]], tmp_path: Path) -> None:
    settings = {"threads": THREADS, "capacity": 128}
    runs.run(tmp_path / "together", smollm2, jobs, **settings)
    for job in jobs:
        runs.run(tmp_path / "alone", smollm2, [job], **settings)
        start = runs.initial(smollm2, job)
        found, expected = (tmp_path / run / job["name"] for run in ("together", "alone"))
        apart = runs.total_difference(
            runs.change(runs.state(found), start), runs.change(runs.state(expected), start)
        )
        ours, theirs = runs.losses(found), runs.losses(expected)
        losses = runs.loss_difference(ours, theirs)
        runs.figure(f"SmolLM2, float32, {job['name']}, change of weights after its steps", apart)
        runs.figure(f"SmolLM2, float32, {job['name']}, losses", losses)
        assert apart <= 1e-3
        early = [
            {key: run[key] for key in theirs if key[1] <= STEPS // 2} for run in (ours, theirs)
        ]
        assert runs.loss_difference(*early) <= 1e-5
        # AdamW makes more of a rounding with every step: single losses of `narrow`, at a learning
        # rate of 5e-3, were 5e-5 to 8e-5 apart from step 14 on.
        assert losses <= 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_deterministic(
    dtype: str, smollm2: Path, jobs: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Alone; in company, stopped and resumed: equal bytes."""
    settings = {"threads": THREADS, "dtype": dtype, "deterministic": True}
    short = [{**job, "max_steps": 2 + i} for i, job in enumerate(jobs[:3])]
    company = {"capacity": 128, **settings}
    runs.run(tmp_path / "together", smollm2, short, stop=runs.StopAfter(3), **company)
    result = runs.run(tmp_path / "together", smollm2, short[::-1], resume=True, **company)
    assert {job.state for job in result.jobs} == {"succeeded"}
    for job in short:
        runs.run(tmp_path / "alone", smollm2, [job], capacity=60, **settings)
        runs.assert_same_bytes(
            tmp_path / "together" / job["name"], tmp_path / "alone" / job["name"]
        )


def test_near_a_plain_loop_with_peft(
    smollm2: Path, jobs: list[dict[str, Any]], tmp_path: Path
) -> None:
    job = {**jobs[0], "max_steps": 6, "adapter": {"r": 4, "lora_alpha": 8}}
    company = [job, {**jobs[1], "max_steps": 6}]
    runs.run(tmp_path, smollm2, company, threads=THREADS, capacity=128)
    start = runs.initial(smollm2, job)
    losses, _, final = train_with_peft(smollm2, JobSpec.model_validate(job), start, torch.float32)
    found = runs.losses(tmp_path / job["name"])
    for step, loss in enumerate(losses, 1):
        assert found["train", step] == pytest.approx(loss, rel=1e-4)
    state = runs.state(tmp_path / job["name"])
    apart = runs.total_difference(runs.change(state, start), runs.change(final, start))
    runs.figure("SmolLM2, float32, PEFT, change of weights after 6 steps", apart)
    assert apart <= 5e-3


def test_it_learns(smollm2: Path, jobs: list[dict[str, Any]], tmp_path: Path) -> None:
    rows = tmp_path / "same.jsonl"
    rows.write_text('{"prompt": "The password is", "completion": " quick brown fox"}\n' * 4)
    job = {**jobs[0], "dataset": {"path": str(rows)}, "num_epochs": 5, "max_steps": None}
    result = runs.run(tmp_path / "out", smollm2, [job], threads=THREADS).jobs[0]
    assert result.loss_first is not None
    assert result.loss_last is not None
    assert result.loss_last < 0.5 * result.loss_first
