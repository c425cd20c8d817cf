"""``lorafusion export`` on the command line: its lines, its exit code, the folder it writes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from lorafusion.adapters.peft_format import load_adapter
from lorafusion.cli import build_app

NAMES = [f"model.layers.{i}.self_attn.q_proj" for i in range(2)]


def export(*args: str | Path) -> Result:
    return CliRunner().invoke(build_app(), ["export", *map(str, args)])


@pytest.fixture
def adapter(tiny_base: Path, tmp_path: Path) -> Path:
    """A job's adapter whose two modules have ranks 2 and 12."""
    folder = tmp_path / "run" / "support" / "adapter"
    folder.mkdir(parents=True)
    fields = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(tiny_base),
        "r": 12,
        "lora_alpha": 24,
        "target_modules": ["q_proj"],
        "rank_pattern": {"layers.0.self_attn.q_proj": 2},
    }
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    generator = torch.Generator().manual_seed(1)
    factors = {
        f"base_model.model.{name}.lora_{x}.weight": torch.randn(shape, generator=generator)
        for name, rank in zip(NAMES, (2, 12), strict=True)
        for x, shape in (("A", (rank, 32)), ("B", (32, rank)))
    }
    save_file(factors, folder / "adapter_model.safetensors")
    return folder


def rewrite(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_patterns_fail_and_are_folded(adapter: Path, tiny_base: Path, tmp_path: Path) -> None:
    result = export("--adapter", adapter)
    assert result.exit_code == 1, result.output
    assert "  not  rank_pattern: vLLM ignores it" in result.stdout
    assert "  ok   use_dora: false" in result.stdout
    assert "vllm serve" not in result.stdout

    output = tmp_path / "for vllm"
    result = export("--adapter", adapter.parent, "--output", output)
    assert result.exit_code == 0, result.output
    *_, command = result.stdout.splitlines()
    assert command == (
        f"vllm serve {tiny_base} --enable-lora --max-lora-rank 16 "
        f"--lora-modules 'for vllm={output}'"
    )
    before, after = load_adapter(adapter), load_adapter(output)
    assert (after.config.r, after.config.rank_pattern) == (12, {})
    for name in NAMES:
        expected = before.config.scale_of(name) * before.modules[name][1] @ before.modules[name][0]
        found = after.config.scale_of(name) * after.modules[name][1] @ after.modules[name][0]
        torch.testing.assert_close(found, expected)
    card = (output / "README.md").read_text()
    assert str(adapter) in card
    assert "--max-lora-rank 16" in card
    assert export("--adapter", output).exit_code == 0


def test_a_job_names_its_adapter(adapter: Path) -> None:
    rewrite(adapter, rank_pattern={})
    factors = factors_of_one_rank()
    save_file(factors, adapter / "adapter_model.safetensors")
    for place in (adapter, adapter.parent):
        result = export("--adapter", place)
        assert result.exit_code == 0, result.output
        assert f"--lora-modules support={adapter}" in result.stdout


def factors_of_one_rank() -> dict[str, torch.Tensor]:
    """Both modules at rank 12."""
    return {
        f"base_model.model.{name}.lora_{x}.weight": torch.ones(shape)
        for name in NAMES
        for x, shape in (("A", (12, 32)), ("B", (32, 12)))
    }


def test_what_cannot_be_mended_writes_nothing(adapter: Path, tmp_path: Path) -> None:
    rewrite(adapter, use_dora=True)
    result = export("--adapter", adapter, "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "  not  use_dora: vLLM has no DoRA" in result.stdout
    assert "nothing was written" in result.stdout
    assert os.listdir(tmp_path) == ["run"]


def test_mistakes_end_with_2(adapter: Path, tmp_path: Path) -> None:
    result = export("--adapter", tmp_path)
    assert result.exit_code == 2
    assert "no adapter_config.json there" in result.stderr
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}
    result = export("--adapter", adapter, "--output", adapter)
    assert result.exit_code == 2
    assert "is the adapter itself" in result.stderr
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == before
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "precious").write_text("x")
    result = export("--adapter", adapter, "--output", tmp_path / "busy")
    assert result.exit_code == 2
    assert "precious" in result.stderr


def test_a_base_on_which_vllm_has_no_lora(adapter: Path, tmp_path: Path) -> None:
    rewrite(adapter, rank_pattern={})
    save_file(factors_of_one_rank(), adapter / "adapter_model.safetensors")
    base = tmp_path / "gpt2"
    base.mkdir()
    (base / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    result = export("--adapter", adapter, "--base-model", base)
    assert result.exit_code == 1
    assert "  not  base: vLLM serves GPT2LMHeadModel without LoRA only" in result.stdout
