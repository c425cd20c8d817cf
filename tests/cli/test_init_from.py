"""``lorafusion validate`` says what is wrong with ``adapter.init_from``, with file and line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from lorafusion.cli import build_app
from tests.cli.conftest import Write

Q = "base_model.model.model.layers.0.self_attn.q_proj"


def validate(file: Path) -> Result:
    return CliRunner().invoke(build_app(), ["validate", str(file)])


@pytest.fixture
def source(tiny_base: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    fields = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(tiny_base),
        "r": 5,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "layers_to_transform": [0],
        "rank_pattern": {"q_proj": 3},
    }
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    factors = {f"{Q}.lora_A.weight": torch.ones(3, 32), f"{Q}.lora_B.weight": torch.ones(32, 3)}
    save_file(factors, folder / "adapter_model.safetensors")
    return folder


def job(source: Path, **settings: Any) -> dict[str, Any]:
    return {"name": "a", "adapter": {"init_from": str(source), **settings}}


def bare(write_run: Write) -> Write:
    """The file without the adapter that ``write_run`` gives to all jobs."""

    def write(*jobs: dict[str, Any], **settings: Any) -> Path:
        file = write_run(*jobs, **settings)
        run = json.loads(file.read_text())
        del run["defaults"]["adapter"]
        file.write_text(json.dumps(run, indent=1))
        return file

    return write


def test_rank_and_modules_are_the_folders(write_run: Write, source: Path) -> None:
    result = validate(bare(write_run)(job(source)))
    assert result.exit_code == 0, result.output
    assert "rank=3  modules=1" in result.stdout
    assert "note" not in result.stdout


def line_of(file: Path, text: str) -> int:
    lines = file.read_text().splitlines()
    return next(i for i, line in enumerate(lines, 1) if text in line)


def test_conflicts_point_at_their_fields(write_run: Write, source: Path) -> None:
    file = bare(write_run)(job(source, r=16, target_modules=["v_proj"]))
    result = validate(file)
    assert result.exit_code == 2
    for field, text in (("r", '"r": 16'), ("target_modules", '"target_modules"')):
        start = f"{file}:{line_of(file, text)}: jobs[0].adapter.{field}: found "
        (line,) = [line for line in result.stdout.splitlines() if line.startswith(start)]
        assert f"when init_from {source} has" in line
    assert "2 problems" in result.stdout


def remove_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def pickle_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def truncate(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def use_dora(folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": True}))


def set_nan(folder: Path) -> None:
    a = torch.full((3, 32), torch.nan)
    factors = {f"{Q}.lora_A.weight": a, f"{Q}.lora_B.weight": torch.ones(32, 3)}
    save_file(factors, folder / "adapter_model.safetensors")


def widen(folder: Path) -> None:
    factors = {f"{Q}.lora_A.weight": torch.ones(3, 64), f"{Q}.lora_B.weight": torch.ones(32, 3)}
    save_file(factors, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("damage", "phrase"),
    [
        (shutil.rmtree, "no adapter_config.json there"),
        (remove_weights, "no adapter_model.safetensors there"),
        (pickle_weights, "is a pickle"),
        (truncate, "is damaged"),
        (use_dora, "DoRA's magnitudes are not implemented"),
        (set_nan, "NaN or infinite"),
        (widen, "of shape [32, 64], and the base has [32, 32] there"),
    ],
)
def test_folders_that_cannot_be_used(
    damage: Any, phrase: str, write_run: Write, source: Path
) -> None:
    damage(source)
    file = bare(write_run)(job(source))
    result = validate(file)
    assert result.exit_code == 2
    (line,) = [line for line in result.stdout.splitlines() if "init_from" in line]
    start = f"{file}:{line_of(file, 'init_from')}: jobs[0].adapter.init_from: found "
    assert line.startswith(start)
    assert phrase in line


def test_another_base_name_is_a_note_and_a_misspelt_key_a_problem(
    write_run: Write, source: Path
) -> None:
    path = source / "adapter_config.json"
    fields = json.loads(path.read_text()) | {"base_model_name_or_path": "some/other"}
    path.write_text(json.dumps(fields))
    result = validate(bare(write_run)(job(source)))
    assert result.exit_code == 0
    assert "note: init_from" in result.stdout
    assert "some/other" in result.stdout
    file = bare(write_run)({"name": "a", "adapter": {"alpha_pattern": {"qproj": 2}}})
    result = validate(file)
    assert result.exit_code == 2
    assert "jobs[0].adapter.alpha_pattern: found 'qproj', which fits no" in result.stdout


def test_a_start_that_the_run_would_write_over(
    write_run: Write, source: Path, tmp_path: Path
) -> None:
    inside = tmp_path / "runs" / "a" / "adapter"
    inside.parent.mkdir(parents=True)
    source.rename(inside)
    file = bare(write_run)(job(inside), output_dir=str(tmp_path / "runs"))
    result = validate(file)
    assert result.exit_code == 2
    assert "where this run writes its results" in result.stdout
    assert "jobs[0].adapter.init_from" in result.stdout


def test_ranks_of_a_pattern_are_shown_by_the_largest(write_run: Write) -> None:
    adapter = {"r": 2, "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 6}}
    result = validate(bare(write_run)({"name": "a", "adapter": adapter}))
    assert result.exit_code == 0, result.output
    assert "rank=6  modules=4" in result.stdout
