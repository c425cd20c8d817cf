"""What both sides are given, and that the baseline needs nothing else."""

from __future__ import annotations

import ast
import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from lorafusion.adapters.peft_format import load_adapter
from lorafusion.bench.inputs import inputs_folder, sorted_batches, spec_of, write_inputs
from lorafusion.bench.settings import Settings
from lorafusion.bench.turn import BASELINE
from lorafusion.errors import DataError
from lorafusion.jobs.loading import load_run_file
from lorafusion.jobs.schema import RunSpec


def settings(file: Path, output: Path, *, steps: int = 4) -> Settings:
    spec = load_run_file(file)
    return Settings(file, spec, ("peft",), 1, steps, (0.0, 0.05), output)


def silent(text: str) -> None:
    del text


def test_the_baseline_imports_nothing_of_ours() -> None:
    tree = ast.parse(BASELINE.read_text(encoding="utf-8"))
    names = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    tops = {name.partition(".")[0] for name in names}
    assert tops - sys.stdlib_module_names == {
        *("numpy", "torch", "peft", "transformers", "datasets", "trl")
    }


def test_inputs_hold_the_jobs_own_batches_rates_and_weights(job_file: Path, tmp_path: Path) -> None:
    asked = settings(job_file, tmp_path / "out")
    jobs = write_inputs(asked, tmp_path / "inputs", status=silent)
    folder = inputs_folder(tmp_path / "inputs", 0.05)
    wide = json.loads((folder / "wide" / "job.json").read_text())
    # 7 rows (none is held out here) in batches of 4: the second of an epoch has 3.
    assert [len(batch) for batch in wide["batches"]] == [4, 3, 4, 3]
    assert sorted(i for batch in wide["batches"][:2] for i in batch) == list(range(7))
    assert wide["learning_rates"] == pytest.approx([0, 2e-2, 2e-2 * 2 / 3, 2e-2 / 3])
    with np.load(folder / "wide" / "samples.npz") as arrays:
        lengths = np.diff(arrays["offsets"])
        trained = arrays["labels"] != -100
        assert (arrays["labels"][trained] == arrays["input_ids"][trained]).all()
    found = {job.name: job for job in jobs}["wide"]
    assert found.tokens == sum(int(lengths[i]) for batch in wide["batches"] for i in batch)
    assert found.trained_tokens == 2 * int(trained.sum())  # each sample is drawn twice
    stored = load_adapter(folder / "wide" / "adapter")
    assert stored.config.lora_dropout == 0.05
    assert all(bool(a.any()) and not bool(b.any()) for a, b in stored.modules.values())
    run = json.loads((folder / "run.json").read_text())
    assert (run["dtype"], run["threads"], run["jobs"]) == ("float32", 1, ["wide", "narrow"])
    spec = RunSpec.model_validate_json((folder / "spec.json").read_text())
    assert [job.max_steps for job in spec.jobs] == [4, 4]
    assert {job.eval.val_size for job in spec.jobs} == {0}


def test_a_job_keeps_its_end_where_it_comes_first(job_file: Path, tmp_path: Path) -> None:
    spec = spec_of(settings(job_file, tmp_path, steps=50), 0.0)
    assert [job.max_steps for job in spec.jobs] == [9, 50]
    (*_, narrow) = write_inputs(
        settings(job_file, tmp_path, steps=50), tmp_path / "inputs", status=silent
    )
    assert (narrow.name, narrow.steps) == ("narrow", 10)  # one epoch of 20 rows, two a step


def test_batches_by_length_hold_the_same_samples() -> None:
    lengths = {i: (i * 7) % 11 for i in range(10)}
    batches = [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    found = sorted_batches(batches, lengths, seed=3)
    assert sorted(i for batch in found for i in batch) == list(range(10))
    assert sorted(map(len, found)) == [3, 3, 4]
    spans = sorted((min(lengths[i] for i in b), max(lengths[i] for i in b)) for b in found)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))


def test_a_length_beyond_the_base_is_said_before_any_turn(job_file: Path, tmp_path: Path) -> None:
    run = json.loads(job_file.read_text())
    run["jobs"][1]["max_seq_len"] = 4000
    job_file.write_text(json.dumps(run))
    with pytest.raises(DataError, match=r"'narrow': max_seq_len 4000 .* up to 256"):
        write_inputs(settings(job_file, tmp_path), tmp_path / "inputs", status=silent)


def test_a_job_that_starts_from_a_folder(job_file: Path, tmp_path: Path) -> None:
    asked = settings(job_file, tmp_path / "out")
    write_inputs(asked, tmp_path / "first", status=silent)
    source = inputs_folder(tmp_path / "first", 0.0) / "narrow" / "adapter"
    run = json.loads(job_file.read_text())
    run["jobs"][1] |= {"adapter": {"init_from": str(source)}, "seed": 99}
    job_file.write_text(json.dumps(run))
    write_inputs(settings(job_file, tmp_path / "out"), tmp_path / "second", status=silent)
    found = load_adapter(inputs_folder(tmp_path / "second", 0.05) / "narrow" / "adapter")
    expected = load_adapter(source)
    assert found.config.r == 3
    assert found.config.lora_dropout == 0.05
    assert found.modules.keys() == expected.modules.keys()
    assert all((a == expected.modules[name][0]).all() for name, (a, _) in found.modules.items())
