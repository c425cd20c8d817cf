"""A rank needs the memory of its own part of the base, not that of the whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lorafusion.files import home
from tests.training.runs import figure

ROOT = Path(__file__).parents[2]
LAYERS = 6

pytestmark = [pytest.mark.multiproc, pytest.mark.slow]


@pytest.fixture(scope="module")
def large_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """374 MB in float32, in a dozen files."""
    folder = tmp_path_factory.mktemp("large")
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=LAYERS,
        num_attention_heads=16,
        max_position_embeddings=512,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.normal_(std=0.02, generator=generator)
    model.save_pretrained(folder, max_shard_size="40MB")
    files = list(folder.glob("*.safetensors"))
    assert len(files) > 5
    assert sum(file.stat().st_size for file in files) > 300e6
    return folder


def measure(folder: Path, dtype: str, start: int, stop: int) -> dict[str, float]:
    """MB of a fresh process above what its imports need."""
    script = Path(__file__).with_name("measured_part.py")
    child = subprocess.run(
        [sys.executable, script, folder, dtype, str(start), str(stop), str(LAYERS)],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "LORAFUSION_HOME": str(home()),
        },
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout.splitlines()[-1])
    figure(f"layers {start} to {stop} in {dtype}: MB of weights", found["share"])
    figure(f"layers {start} to {stop} in {dtype}: peak / weights", found["all"] / found["share"])
    return found


@pytest.mark.parametrize(("start", "stop"), [(0, 2), (1, 4), (3, 6)])
def test_a_part_needs_its_share_and_a_tenth(start: int, stop: int, large_base: Path) -> None:
    found = measure(large_base, "float32", start, stop)
    assert found["share"] < 250
    assert found["all"] <= 1.1 * found["share"]


def test_a_part_that_is_converted_too(large_base: Path) -> None:
    """Without what is mapped from the files, which the kernel takes back where it is short."""
    found = measure(large_base, "float64", 1, 3)
    assert found["anonymous"] <= 1.1 * found["share"]
