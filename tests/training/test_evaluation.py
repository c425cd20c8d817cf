"""Held-out loss: without dropout, with the weights of the step it follows, on rows not trained."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from lorafusion.data.order import split_held_out
from lorafusion.jobs.schema import JobSpec
from tests.training import runs
from tests.training.peft_loop import read_samples
from tests.training.places import Bench


def test_equals_pefts_model_with_the_exported_adapter(tiny_base: Path, tmp_path: Path) -> None:
    jobs = runs.four_jobs(tmp_path, steps=10)
    result = runs.run(tmp_path / "out", tiny_base, jobs, dtype="float64")
    for job, done in zip(jobs, result.jobs, strict=True):
        if "eval" not in job:
            continue
        spec = JobSpec.model_validate(job)
        samples = read_samples(tiny_base, spec)
        size = spec.eval.val_size
        _, held_out = split_held_out(len(samples), val_size=size, seed=spec.seed)
        model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float64)
        chosen = [samples[i] for i in held_out]
        assert done.eval_before == pytest.approx(mean_loss(model, chosen), rel=1e-9)
        model = peft.PeftModel.from_pretrained(model, done.adapter_dir).double().eval()
        # The exported adapter is float32, hence the tolerance.
        assert done.eval_after == pytest.approx(mean_loss(model, chosen), rel=1e-5)
        assert done.eval_after != pytest.approx(done.eval_before, rel=1e-4)
        found = runs.losses(tmp_path / "out" / job["name"])
        steps = {t for kind, t in found if kind == "eval"}
        assert steps == ({0, 5, 10} if spec.eval.every else {0, 10})
        assert (found["eval", 0], found["eval", 10]) == (done.eval_before, done.eval_after)


@torch.no_grad()
def mean_loss(model: torch.nn.Module, samples: list[tuple[list[int], list[bool]]]) -> float:
    total = count = 0.0
    for ids, trained in samples:
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        labels = torch.where(torch.tensor(trained), torch.tensor(ids), -100)[1:]
        total += float(F.cross_entropy(logits, labels, reduction="sum"))
        count += sum(trained[1:])
    return total / count


def test_held_out_rows_are_never_trained(tiny_base: Path, tmp_path: Path) -> None:
    job = runs.four_jobs(tmp_path)[0]
    data = Bench(tiny_base, [job]).jobs[job["name"]].data
    trained = {i for t in range(1, 21) for i in data.order.batch(t).tolist()}
    assert len(data.held_out_indices) == 3
    assert not trained & set(data.held_out_indices)
    assert len(trained) == len(data.training) - 3


def test_a_held_out_file(tiny_base: Path, tmp_path: Path) -> None:
    job = runs.four_jobs(tmp_path, steps=2)[0]
    path = runs.write_rows(tmp_path / "held.jsonl", rows=5, longest=9, seed=77)
    evaluated = {**job, "eval": {"dataset": {"path": path}}}
    result = runs.run(tmp_path / "out", tiny_base, [evaluated], dtype="float64")
    samples = read_samples(tiny_base, JobSpec.model_validate({**job, "dataset": {"path": path}}))
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float64)
    assert result.jobs[0].eval_before == pytest.approx(mean_loss(model, samples), rel=1e-9)


def test_the_reference_backend_trains_the_same(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autograd on the plain definition, dropout on, instead of the backward by hand."""
    jobs = runs.four_jobs(tmp_path, steps=8)
    runs.run(tmp_path / "cpu", tiny_base, jobs, dtype="float64")
    monkeypatch.setenv("LORAFUSION_BACKEND", "reference")
    runs.run(tmp_path / "reference", tiny_base, jobs, dtype="float64")
    for job in jobs:
        found, expected = (tmp_path / run / job["name"] for run in ("cpu", "reference"))
        assert runs.loss_difference(runs.losses(found), runs.losses(expected)) <= 1e-9
        assert runs.worst_difference(runs.state(found), runs.state(expected)) <= 1e-9
