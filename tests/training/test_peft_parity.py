"""Without dropout, a job in company equals a plain loop with PEFT's own model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lorafusion.jobs.schema import JobSpec
from tests.training import runs
from tests.training.peft_loop import train_with_peft

# What is on in only one of the four jobs, so that each job shows its own settings.
DIFFERENCES: dict[str, dict[str, Any]] = {
    "wide": {"r": 4, "lora_alpha": 8},
    "attention": {"r": 3, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "regex": {"r": 16, "lora_alpha": 5, "target_modules": r"model\.layers\.1\.mlp\..*_proj"},
    "narrow": {"r": 1, "lora_alpha": 3, "target_modules": ["down_proj", "0.self_attn.o_proj"]},
}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    four = runs.four_jobs(tmp_path_factory.mktemp("rows"), steps=11)
    for job in four:
        job["adapter"] = DIFFERENCES[job["name"]]
        job.pop("eval", None)  # rows held out are not the loop's affair
    four[2]["max_grad_norm"] = 0.2
    four[3] = {**four[3], "num_epochs": 3, "max_steps": None}
    return four


@pytest.fixture(scope="module", params=["tied", "untied"])
def base(request: pytest.FixtureRequest, tiny_base: Path, untied_base: Path) -> Path:
    return tiny_base if request.param == "tied" else untied_base


@pytest.fixture(scope="module")
def together(
    base: Path, jobs: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("together")
    runs.run(folder, base, jobs, dtype="float64")
    return folder


@pytest.mark.parametrize("which", range(4), ids=DIFFERENCES)
def test_float64(which: int, base: Path, jobs: list[dict[str, Any]], together: Path) -> None:
    job = jobs[which]
    folder = together / job["name"]
    start = runs.initial(base, job, "float64")
    spec = JobSpec.model_validate(job)
    losses, norms, final = train_with_peft(base, spec, start, torch.float64)
    found = runs.records(folder)
    assert len(found) == len(losses) >= 8
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), 1):
        record = found["train", step]
        assert record["loss"] == pytest.approx(loss, rel=1e-9)
        assert record["grad_norm"] == pytest.approx(norm, rel=1e-9)
    ours = {name: runs.state(folder)[name] for name in start}
    worst = runs.worst_difference(runs.change(ours, start), runs.change(final, start))
    runs.figure(f"PEFT, {job['name']}, change of weights, worst tensor", worst)
    assert worst <= 1e-9
    if job.get("max_grad_norm", 1.0) is not None:
        assert max(norms) > job.get("max_grad_norm", 1.0), "nothing was clipped"
