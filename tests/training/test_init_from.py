"""A job that starts from a PEFT folder goes on as PEFT's own training from it would."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lorafusion.adapters.peft_format import load_adapter
from lorafusion.errors import OutputError
from lorafusion.jobs.schema import JobSpec
from tests.training import runs
from tests.training.peft_loop import train_with_peft

SOURCES: dict[str, dict[str, Any]] = {
    "plain": {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "patterns": {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": "all-linear",
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*": 7},
        "alpha_pattern": {r".*\.0\..*_proj": 3, "down_proj": 11},
    },
    "rslora with patterns": {
        "r": 2,
        "lora_alpha": 3,
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {"layers.0.mlp.up_proj": 5},
        "alpha_pattern": {"q_proj": 2},
        "use_rslora": True,
    },
}


def make_source(base: Path, folder: Path, **settings: Any) -> Path:
    """An adapter of PEFT's making with random A and B."""
    model = AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(**settings, task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(len(folder.name))
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.1, generator=generator)
    theirs.save_pretrained(folder)
    return folder


def start_of(folder: Path) -> dict[str, torch.Tensor]:
    modules = load_adapter(folder).modules
    return {
        f"{name}.{factor}": tensor.double()
        for name, pair in modules.items()
        for factor, tensor in zip(("lora_A", "lora_B"), pair, strict=True)
    }


@pytest.fixture(scope="module")
def sources(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sources")
    return {name: make_source(tiny_base, root / name, **SOURCES[name]) for name in SOURCES}


@pytest.fixture(scope="module")
def jobs(
    sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """One job per source, and one that starts afresh with patterns of its own."""
    four = runs.four_jobs(tmp_path_factory.mktemp("rows"), steps=8)
    adapters = [{"init_from": str(folder)} for folder in sources.values()]
    fresh = {key: SOURCES["patterns"][key] for key in ("rank_pattern", "alpha_pattern")}
    for job, adapter in zip(four, [*adapters, {"r": 3, "lora_alpha": 4, **fresh}], strict=True):
        job["adapter"] = adapter
        job.pop("eval", None)
    return four


@pytest.fixture(scope="module")
def together(
    tiny_base: Path, jobs: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("together")
    result = runs.run(folder, tiny_base, jobs, dtype="float64")
    assert [job.state for job in result.jobs] == ["succeeded"] * 4, result
    return folder


@pytest.mark.parametrize("which", range(4), ids=[*SOURCES, "fresh with patterns"])
def test_equals_peft_in_float64(
    which: int, tiny_base: Path, jobs: list[dict[str, Any]], together: Path
) -> None:
    job = jobs[which]
    spec = JobSpec.model_validate(job)
    init_from = job["adapter"].get("init_from")
    start = start_of(Path(init_from)) if init_from else runs.initial(tiny_base, job, "float64")
    losses, norms, final = train_with_peft(tiny_base, spec, start, torch.float64)
    found = runs.records(together / job["name"])
    assert len(found) == len(losses) >= 5
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), 1):
        assert found["train", step]["loss"] == pytest.approx(loss, rel=1e-9)
        assert found["train", step]["grad_norm"] == pytest.approx(norm, rel=1e-9)
    state = runs.state(together / job["name"])
    ours = {name: state[name] for name in start}
    worst = runs.worst_difference(runs.change(ours, start), runs.change(final, start))
    runs.figure(f"PEFT continued, {job['name']}, change of weights, worst tensor", worst)
    assert worst <= 1e-9


def test_the_exported_folder_is_pefts_function(
    tiny_base: Path, jobs: list[dict[str, Any]], together: Path
) -> None:
    """What was trained on comes out in a folder from which PEFT computes the trained function."""
    ids = torch.arange(3, 40).reshape(1, -1)
    for job in jobs:
        folder = together / job["name"] / "adapter"
        loaded = load_adapter(folder)
        base = AutoModelForCausalLM.from_pretrained(tiny_base)
        theirs = peft.PeftModel.from_pretrained(base, folder)
        with torch.no_grad():
            found = theirs(input_ids=ids).logits
            merged = AutoModelForCausalLM.from_pretrained(tiny_base)
            for name, (a, b) in loaded.modules.items():
                weight = merged.get_submodule(name).weight
                weight += loaded.config.scale_of(name) * (b @ a)
            torch.testing.assert_close(found, merged(input_ids=ids).logits, rtol=0, atol=1e-5)


def test_together_equals_alone(
    tiny_base: Path, jobs: list[dict[str, Any]], together: Path, tmp_path: Path
) -> None:
    for job in jobs:
        runs.run(tmp_path, tiny_base, [job], dtype="float64", capacity=50)
        alone, company = tmp_path / job["name"], together / job["name"]
        assert runs.loss_difference(runs.losses(company), runs.losses(alone)) <= 1e-9
        ours, theirs = runs.state(company), runs.state(alone)
        assert runs.worst_difference(ours, theirs) <= 1e-9


def test_resume_is_as_if_uninterrupted_and_notices_another_folder(
    tiny_base: Path, jobs: list[dict[str, Any]], tmp_path: Path, together: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(jobs[1]["adapter"]["init_from"], source)
    job = {**jobs[1], "adapter": {"init_from": str(source)}, "save_every": 2}
    runs.run(tmp_path / "run", tiny_base, [job], dtype="float64", stop=runs.StopAfter(3))
    done = runs.run(tmp_path / "moved", tiny_base, [job], dtype="float64", stop=runs.StopAfter(3))
    assert done.jobs[0].state == "paused"

    # The same content in another place is the same start.
    elsewhere = tmp_path / "elsewhere"
    source.rename(elsewhere)
    moved = {**job, "adapter": {"init_from": str(elsewhere)}}
    runs.run(tmp_path / "moved", tiny_base, [moved], dtype="float64", resume=True)
    name = job["name"]
    found, expected = runs.state(tmp_path / "moved" / name), runs.state(together / name)
    assert runs.worst_difference(found, expected) <= 1e-9

    weights = elsewhere / "adapter_model.safetensors"
    tensors = load_file(weights)
    key = next(iter(tensors))
    save_file({**tensors, key: tensors[key] + 1}, weights)
    result = runs.run(tmp_path / "run", tiny_base, [moved], dtype="float64", resume=True)
    assert result.jobs[0].state == "failed"
    assert "init_from: was" in str(result.jobs[0].reason)


def test_another_order_of_patterns_is_noticed(
    tiny_base: Path, jobs: list[dict[str, Any]], tmp_path: Path
) -> None:
    pattern = {"q_proj": 2.0, ".*_proj": 3.0}
    job = {**jobs[3], "adapter": {"alpha_pattern": pattern}, "save_every": 1}
    runs.run(tmp_path, tiny_base, [job], stop=runs.StopAfter(3))
    job["adapter"] = {"alpha_pattern": dict(reversed(pattern.items()))}
    result = runs.run(tmp_path, tiny_base, [job], resume=True)
    assert "alpha_pattern" in str(result.jobs[0].reason)


def test_a_folder_that_cannot_be_used_fails_its_job_alone(
    tiny_base: Path, jobs: list[dict[str, Any]], tmp_path: Path
) -> None:
    bad = {**jobs[0], "name": "bad", "adapter": {"init_from": str(tmp_path / "nowhere")}}
    both = {**jobs[0], "name": "both", "adapter": {**jobs[0]["adapter"], "r": 8}}
    good = {**jobs[3], "max_steps": 2}
    result = runs.run(tmp_path / "run", tiny_base, [bad, both, good])
    assert [job.state for job in result.jobs] == ["failed", "failed", "succeeded"]
    assert "nowhere: no adapter_config.json" in str(result.jobs[0].reason)
    reason = str(result.jobs[1].reason)
    for phrase in ("adapter.r: found 8", "has 3", "Remove r"):
        assert phrase in reason


@pytest.mark.parametrize("inside", ["adapter", "."])
def test_a_run_does_not_write_over_what_it_starts_from(
    inside: str, tiny_base: Path, jobs: list[dict[str, Any]], tmp_path: Path
) -> None:
    first = {**jobs[3], "max_steps": 2}
    runs.run(tmp_path, tiny_base, [first])
    folder = tmp_path / first["name"]
    again = {**first, "adapter": {"init_from": str(folder / inside)}}
    from lorafusion.launch.local import StopRequest, run_local
    from lorafusion.training.events import Events

    spec = runs.make_spec(tiny_base, [again])
    with pytest.raises(OutputError, match="starts from"):
        run_local(spec, output=tmp_path, events=Events(), stop=StopRequest(), existing="overwrite")
    assert load_adapter(folder).modules


def test_the_folders_dropout_counts_unless_the_job_has_its_own(
    tiny_base: Path, jobs: list[dict[str, Any]], tmp_path: Path
) -> None:
    source = make_source(tiny_base, tmp_path / "source", **SOURCES["plain"], lora_dropout=0.4)
    job = {**jobs[0], "max_steps": 1, "adapter": {"init_from": str(source)}}
    own = {**job, "name": "own", "adapter": {"init_from": str(source), "lora_dropout": 0.1}}
    runs.run(tmp_path / "run", tiny_base, [job, own])
    found = [load_adapter(tmp_path / "run" / name).config for name in (job["name"], "own")]
    assert [config.lora_dropout for config in found] == [0.4, 0.1]
