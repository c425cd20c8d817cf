"""``lorafusion merge`` on the command line; what it computes is tested in tests/test_merging.py."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from lorafusion.cli import build_app

Q = "model.layers.0.self_attn.q_proj"


def merge(*args: str | Path) -> Result:
    return CliRunner().invoke(build_app(), ["merge", *map(str, args)])


@pytest.fixture
def adapter(tiny_base: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "job" / "adapter"
    folder.mkdir(parents=True)
    fields = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(tiny_base),
        "r": 2,
        "lora_alpha": 4,
        "target_modules": [Q],
    }
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    key = f"base_model.model.{Q}"
    factors = {f"{key}.lora_A.weight": torch.ones(2, 32), f"{key}.lora_B.weight": torch.ones(32, 2)}
    save_file(factors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("place", [".", ".."], ids=["adapter", "job"])
def test_writes_a_model_and_says_so(
    place: str, adapter: Path, tiny_base: Path, tmp_path: Path
) -> None:
    output = tmp_path / "merged"
    result = merge("--adapter", adapter / place, "--output", output)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{output}: 1 linears merged, weights in float32\n"
    for what in ("loading", "merging", "writing"):
        assert what in result.stderr
    key = f"{Q}.weight"
    before = load_file(tiny_base / "model.safetensors")[key]
    # s = 4 / 2, and B A is 2 everywhere.
    assert torch.equal(load_file(output / "model.safetensors")[key], before + 4)


def test_mistakes_end_with_2_and_write_nothing(adapter: Path, tmp_path: Path) -> None:
    for args, phrase in (
        (("--adapter", tmp_path, "--output", tmp_path / "x"), "no adapter_config.json there"),
        (("--adapter", adapter, "--output", adapter), "is not empty"),
        (("--adapter", adapter, "--output", tmp_path / "x", "--dtype", "int8"), "int8"),
        (("--adapter", adapter, "--output", tmp_path / "x", "--base-model", "/no"), "/no"),
        (("--adapter", adapter), "--output"),
    ):
        result = merge(*args)
        assert result.exit_code == 2, result.output
        assert phrase in result.stderr
    assert os.listdir(tmp_path) == ["job"]


def test_an_adapter_without_a_base(adapter: Path, tiny_base: Path, tmp_path: Path) -> None:
    path = adapter / "adapter_config.json"
    fields = json.loads(path.read_text())
    del fields["base_model_name_or_path"]
    path.write_text(json.dumps(fields))
    options = ("--adapter", adapter, "--output", tmp_path / "merged", "--dtype", "bfloat16")
    result = merge(*options)
    assert result.exit_code == 2
    assert "does not name its base" in result.stderr
    result = merge(*options, "--base-model", tiny_base)
    assert result.exit_code == 0, result.output
    assert "weights in bfloat16" in result.stdout
