"""The base is shared: nothing writes to it, and jobs beside it cost little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lorafusion.files import home
from lorafusion.models.load import load_base
from tests.conftest import make_tokenizer
from tests.training import runs

ROOT = Path(__file__).parents[2]


def test_the_fingerprint_is_the_same_after_a_run(tiny_base: Path, tmp_path: Path) -> None:
    before = load_base(str(tiny_base), "float32").fingerprint()
    result = runs.run(tmp_path / "out", tiny_base, runs.four_jobs(tmp_path, steps=4))
    assert result.base_sha256 == before == load_base(str(tiny_base), "float32").fingerprint()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_fingerprint_notices_the_last_bit_of_any_weight(dtype: str, untied_base: Path) -> None:
    base = load_base(str(untied_base), dtype)
    seen = {base.fingerprint()}
    for tensor in base.tensors.values():
        tensor.view(-1).view(torch.uint8)[-1] ^= 1
        seen.add(base.fingerprint())
    assert len(seen) == 1 + len(base.tensors)
    assert "lm_head.weight" in base.tensors


def test_a_write_to_the_base_during_a_run_is_noticed(tiny_base: Path, tmp_path: Path) -> None:
    from tests.training.places import Bench

    bench = Bench(tiny_base, runs.four_jobs(tmp_path, steps=4))
    before = bench.base.fingerprint()
    bench.run(bench.place("wide"))
    assert bench.base.fingerprint() == before
    weight = bench.base.model.get_submodule("model.layers.1.mlp.up_proj").base.weight
    weight.data[0, 0] += 1e-3
    assert bench.base.fingerprint() != before


@pytest.fixture(scope="module")
def larger_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough for its memory to be seen: 25 MB of weights, 8192 tokens of vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("larger")
    make_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.multiproc
def test_eight_jobs_need_at_most_half_as_much_again_as_one(
    larger_base: Path, tmp_path: Path
) -> None:
    """Above the loaded base, at equal capacity."""
    peaks = {count: peak_mb(larger_base, tmp_path / str(count), count) for count in (1, 8)}
    for count, peak in peaks.items():
        runs.figure(f"peak above the loaded base with {count} jobs, MB", peak)
    runs.figure("8 jobs / 1 job", peaks[8] / peaks[1])
    assert peaks[8] <= 1.5 * peaks[1]


def peak_mb(base: Path, folder: Path, count: int) -> float:
    """Peak of a fresh process in which ``count`` jobs fill microbatches of 1024 tokens."""
    folder.mkdir()
    rows = [
        runs.write_rows(folder / f"{i}.jsonl", rows=48, longest=100, seed=i) for i in range(count)
    ]
    jobs: list[dict[str, Any]] = [
        {
            "name": f"job{i}",
            "dataset": {"path": path},
            "adapter": {"r": 8, "lora_dropout": 0.05},
            "global_batch_size": 12 if count == 1 else 4,  # either fills places
            "max_steps": 2,
        }
        for i, path in enumerate(rows)
    ]
    spec = runs.make_spec(base, jobs, capacity=1024)
    (folder / "spec.json").write_text(spec.model_dump_json(exclude_unset=True))
    child = subprocess.run(
        [sys.executable, Path(__file__).with_name("measured_run.py"), folder],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            # Without it glibc keeps freed blocks for reasons of its own, some runs more.
            "MALLOC_TRIM_THRESHOLD_": "0",
            "PYTHONPATH": str(ROOT),
            "LORAFUSION_HOME": str(home()),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])["peak_mb"]
