"""The flat loop of the docs is the oracle: the system computes the same, with neighbours."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors.torch import load_file

import lorafusion
from tests.training import runs

SCRIPT = Path(__file__).parents[2] / "docs" / "single_job_loop.py"
STEPS = 8
OPTIONS = {
    "--dtype": "float64",
    "--rank": 4,
    "--alpha": 8,
    "--dropout": 0.2,
    "--lr": 3e-3,
    "--warmup": 2,
    "--decay": 0.05,
    "--max-norm": 0.5,
    "--batch-size": 4,
    "--steps": STEPS,
    "--max-seq-len": 14,
    "--seed": 7,
}


@pytest.fixture(scope="module")
def loop() -> ModuleType:
    spec = importlib.util.spec_from_file_location("single_job_loop", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    # 11 rows are two full batches and a partial one an epoch; the longest are cut.
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    return runs.write_rows(path, rows=11, longest=9, seed=3)


def test_the_system_equals_the_loop(
    loop: ModuleType, rows: str, tiny_base: Path, tmp_path: Path
) -> None:
    options = [str(word) for pair in OPTIONS.items() for word in pair]
    arguments = loop.parse(["--base", str(tiny_base), "--data", rows, *options])
    losses, norms, weights = loop.train(arguments)

    job = lorafusion.Job(
        "job",
        rows,
        adapter={"r": 4, "lora_alpha": 8, "lora_dropout": 0.2},
        learning_rate=3e-3,
        warmup_steps=2,
        weight_decay=0.05,
        max_grad_norm=0.5,
        global_batch_size=4,
        max_steps=STEPS,
        max_seq_len=14,
        seed=7,
    )
    beside = [lorafusion.Job(**spec, max_seq_len=40) for spec in runs.four_jobs(tmp_path, steps=5)]
    jobs = [beside[1], job, beside[3]]
    result = lorafusion.train(
        jobs, tiny_base, output=tmp_path / "run", dtype="float64", capacity=40, threads=1
    )

    assert result.succeeded
    steps = [record for record in result["job"].metrics() if record.kind == "train"]
    assert len(steps) == len(losses) == STEPS
    # Clipping and AdamW hide a gradient's scale, so a wrong denominator shows in the norm alone.
    apart = max(
        *(abs(step.loss - loss) / loss for step, loss in zip(steps, losses, strict=True)),
        *(abs(step.grad_norm - norm) / norm for step, norm in zip(steps, norms, strict=True)),
    )
    start = runs.initial(tiny_base, job.model_dump(), "float64")
    final = runs.state(tmp_path / "run" / "job")
    assert weights.keys() == start.keys()
    moved = runs.worst_difference(runs.change(final, start), runs.change(weights, start))
    runs.figure("flat loop, losses and norms", apart)
    runs.figure("flat loop, change of weights, worst tensor", moved)
    assert apart <= 1e-9
    assert moved <= 1e-9


def test_it_runs_as_the_docs_say(rows: str, tiny_base: Path, tmp_path: Path) -> None:
    target = tmp_path / "weights.safetensors"
    arguments: list[Any] = ["--base", tiny_base, "--data", rows, "--steps", "2", "--save", target]
    arguments += ["--targets", "q_proj", "v_proj"]
    output = subprocess.check_output([sys.executable, SCRIPT, *arguments], text=True)
    assert re.findall(r"^step +(\d) +loss \d+\.\d{6} ", output, re.MULTILINE) == ["1", "2"]
    ends = {name.split(".", 3)[3] for name in load_file(target)}
    assert ends == {
        f"self_attn.{module}.{factor}"
        for module in ("q_proj", "v_proj")
        for factor in ("lora_A", "lora_B")
    }


def test_it_stands_on_its_own() -> None:
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    names = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    ]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [name for name in names if name.partition(".")[0] in ("lorafusion", "peft", "tests")]
