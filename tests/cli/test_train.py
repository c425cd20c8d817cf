"""``lorafusion train`` as a user meets it: what it prints, how it ends, what it refuses."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lorafusion.cli import build_app
from lorafusion.training.folders import claim_folder

ROOT = Path(__file__).parents[2]
ADAPTER_FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
Write = Callable[..., Path]


def train(file: Path, *options: str) -> Result:
    return CliRunner().invoke(build_app(), ["train", str(file), *options])


def adapter_files(folder: Path) -> set[str]:
    return {path.name for path in (folder / "adapter").iterdir()}


def test_plain_lines_and_a_closing_table(write_run: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    file = write_run({"name": "first"}, {"name": "second", "max_steps": 3, "seed": 4})
    result = train(file, "--output", str(out), "--show-generation")
    assert result.exit_code == 0, result.output
    text = result.stdout
    step = r"^second  step 3/3  loss \d\.\d{3}  lr \d\.\de-\d\d  grad \d+\.\d\d  [\d,]+ tok/s$"
    assert re.search(step, text, re.MULTILINE)
    assert len(re.findall(r"^(?:first |second)  step", text, re.MULTILINE)) == 5
    assert re.search(r"^first   held-out loss \d\.\d{3} before training$", text, re.MULTILINE)
    # The closing table: state, steps, losses from and to, change, tokens, folder.
    row = r"^second  succeeded +3/3  (\S+) → (\S+) +[-+]\d+\.\d%  \S+ → \S+ +\d+  " + re.escape(
        str(out / "second" / "adapter")
    )
    found = re.search(row, text, re.MULTILINE)
    assert found, text
    assert float(found[2]) < float(found[1])
    assert re.search(r"tokens/s · .* in all, .* training · peak memory .* · base unchanged", text)
    assert text.count("a held-out prompt") == 2
    assert re.search(r"^prompt +the quick \d+ *$", text, re.MULTILINE)
    assert re.search(r"^expected +brown fox *$", text, re.MULTILINE)
    assert adapter_files(out / "first") == adapter_files(out / "second") == ADAPTER_FILES
    stored = json.loads((out / "result.json").read_text())
    assert stored["jobs"][0]["generation"]["expected"] == " brown fox"


def test_json_alone_on_stdout_and_default_folder(
    write_run: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = train(write_run({"name": "only"}), "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert {"tokens_per_s", "wall_s", "peak_rss_mb"} <= answer.keys()
    (job,) = answer["jobs"]
    assert (job["name"], job["state"], job["steps"]) == ("only", "succeeded", 2)
    assert all(job[key] > 0 for key in ("loss_first", "loss_last", "eval_before", "eval_after"))
    assert job["tokens"] > 0
    assert Path(job["adapter_dir"]) == Path("runs/run/only/adapter")
    assert adapter_files(tmp_path / "runs" / "run" / "only") == ADAPTER_FILES
    assert "step 2/2" in result.stderr


def test_names_of_other_tools_are_noted_once(write_run: Write, tmp_path: Path) -> None:
    file = write_run({"name": "a", "lora_alpha": 4}, {"name": "b", "lora_alpha": 8})
    result = train(file, "--output", str(tmp_path / "out"), "--json")
    assert result.exit_code == 0
    assert result.stderr.count("lora_alpha is taken as adapter.lora_alpha") == 1
    assert json.loads(result.stdout)


def test_json_has_null_for_what_is_not_finite() -> None:
    from lorafusion.training.result import JobResult, RunResult

    job = JobResult("a", "failed", loss_first=math.nan, loss_last=-math.inf, eval_after=1.5)
    found = RunResult((job,), 0.0, 0.0, math.inf, 1.0, "0").to_dict()
    values = found["jobs"][0]
    assert (values["loss_first"], values["loss_last"], values["eval_after"]) == (None, None, 1.5)
    assert found["wall_s"] is None
    json.dumps(found, allow_nan=False)


def test_a_job_that_cannot_be_trained_fails_alone(write_run: Write, tmp_path: Path) -> None:
    row = json.dumps({"prompt": "the fox", "completion": " jumps"})
    files = {
        "empty": "",
        "broken": row + "\n{oops\n",
        "columns": row + '\n{"text": "a"}\n',
        "nothing": json.dumps({"prompt": "x" * 60, "completion": " y"}),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    long = json.dumps({"prompt": "the fox", "completion": " jumps" * 60})
    (tmp_path / "long").write_text(f"{row}\n{row}\n{long}\n{files['nothing']}\n")
    bad = [{"name": name, "dataset": {"path": str(tmp_path / name)}} for name in files]
    good = {"name": "long", "dataset": {"path": str(tmp_path / "long")}, "eval": {"val_size": 1}}
    file = write_run(
        *bad,
        {"name": "missing", "dataset": {"path": str(tmp_path / "missing.jsonl")}},
        {"name": "target", "adapter": {"target_modules": ["q_projj"]}},
        {"name": "held", "eval": {"val_size": 14}},
        good,
    )
    result = train(file, "--output", str(tmp_path / "out"), "--json")
    assert result.exit_code == 1, result.output
    jobs = {job["name"]: job for job in json.loads(result.stdout)["jobs"]}
    for name, phrase in {
        "empty": "no rows",
        "broken": "broken:2: is not JSON",
        "columns": "columns:2:",
        "nothing": "nothing is left to train on",
        "missing": "no such file",
        "target": "'q_projj' matches no module",
        "held": "14",
    }.items():
        assert jobs[name]["state"] == "failed", name
        assert phrase in jobs[name]["reason"]
        assert f"{name} failed: {jobs[name]['reason']}" in result.stderr
        assert jobs[name]["adapter_dir"] is None
        assert not (tmp_path / "out" / name / "adapter").exists()
    assert jobs["long"]["state"] == "succeeded"
    assert "3 samples, 1 cut to max_seq_len, 1 dropped" in result.stderr
    assert adapter_files(tmp_path / "out" / "long") == ADAPTER_FILES


@pytest.mark.parametrize(
    ("job", "settings", "phrase"),
    [
        ({"max_step": 3}, {}, "jobs[0].max_step: found the unknown field"),
        ({"name": "../up"}, {}, "jobs[0].name: found"),
        ({"name": "a/b"}, {}, "jobs[0].name: found"),
        ({"adapter": {"r": 0}}, {}, "jobs[0].adapter.r: found 0"),
        ({"adapter": {"use_dora": True}}, {}, "use_dora"),
        ({"max_seq_len": 200}, {}, "max_seq_len"),  # above the capacity
        ({}, {"capacity": 8}, "max_seq_len"),
        ({}, {"base_model": "/no/such/base"}, "no folder with a config.json"),
        ({}, {"base_model": "BERT"}, "no causal LM"),
        ({}, {"output_dir": "FILE"}, "cannot be used"),
        ({}, {"output_dir": "FILE/below"}, "cannot be used"),
        ({"output_dir": "FILE/below"}, {}, "cannot be used"),
    ],
)
def test_bad_input_ends_with_2(
    write_run: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    job: dict[str, Any],
    settings: dict[str, Any],
    phrase: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    bert = tmp_path / "bert"
    bert.mkdir()
    config = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
    (bert / "config.json").write_text(json.dumps(config))
    (tmp_path / "file").write_text("")
    places = {"BERT": str(bert), "FILE": "file", "FILE/below": "file/below"}
    job = {
        key: places.get(value, value) if key != "adapter" else value for key, value in job.items()
    }
    settings = {key: places.get(value, value) for key, value in settings.items()}
    result = train(write_run({"name": "only", **job}, **settings), "--json")
    assert result.exit_code == 2, result.output
    assert phrase in result.stderr
    assert result.stdout == ""
    assert not list(tmp_path.rglob("adapter"))


def test_a_missing_file_and_twice_the_same_name(write_run: Write, tmp_path: Path) -> None:
    result = train(tmp_path / "no.yaml")
    assert result.exit_code == 2
    assert "no such file" in result.stderr
    result = train(write_run({"name": "same"}, {"name": "same"}))
    assert result.exit_code == 2
    assert "jobs[1].name: found" in result.stderr


def test_earlier_results_are_kept_unless_told_otherwise(write_run: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    file = write_run({"name": "only"})
    options = ("--output", str(out))
    assert train(file, *options).exit_code == 0
    weights = out / "only" / "adapter" / "adapter_model.safetensors"
    before = weights.read_bytes(), weights.stat().st_mtime_ns

    refused = train(file, *options)
    assert refused.exit_code == 2
    assert "--resume" in refused.stderr
    assert "--overwrite" in refused.stderr
    both = train(file, *options, "--resume", "--overwrite")
    assert both.exit_code == 2
    assert before == (weights.read_bytes(), weights.stat().st_mtime_ns)

    again = train(file, *options, "--overwrite")
    assert again.exit_code == 0, again.output
    assert weights.stat().st_mtime_ns != before[1]
    with claim_folder(out):
        held = train(file, *options, "--resume")
    assert held.exit_code == 2
    assert "in use by another run" in held.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_all_and_resume_finishes(
    write_run: Write, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "out"
    file = write_run({"name": "first", "max_steps": 100}, {"name": "second", "max_steps": 90})
    command = [sys.executable, "-m", "lorafusion", "train", str(file), "--output", str(out)]
    with subprocess.Popen(
        [*command, "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        for line in process.stderr:
            if "step 3/" in line:
                process.send_signal(number)
                break
        rest, answer = process.stderr.read(), json.loads(process.stdout.read())
    assert process.returncode == code
    assert f"to go on: lorafusion train {file} --output {out} --resume" in rest
    assert f"stopped by {number.name}: saving what is done" in rest
    assert "Traceback" not in rest
    for job in answer["jobs"]:
        assert job["state"] == "paused"
        assert 3 <= job["steps"] < 90
        assert adapter_files(out / job["name"]) == ADAPTER_FILES
        assert list((out / job["name"] / "checkpoints").glob("step-*/manifest.json"))

    resumed = train(file, "--output", str(out), "--resume", "--json")
    assert resumed.exit_code == 0, resumed.output
    assert [job["steps"] for job in json.loads(resumed.stdout)["jobs"]] == [100, 90]
    assert "resumed after step" in resumed.stderr
    lines = (out / "first" / "metrics.jsonl").read_text().splitlines()
    steps = [record["step"] for record in map(json.loads, lines) if record["kind"] == "train"]
    assert steps == list(range(1, 101))


@pytest.mark.parametrize(
    ("option", "kept"), [((), True), (("--no-trace",), False), (("--trace",), True)]
)
def test_what_is_traced(
    write_run: Write, tmp_path: Path, option: tuple[str, ...], kept: bool
) -> None:
    out = tmp_path / "out"
    file = write_run({"name": "only", "max_steps": 8})
    result = train(file, "--output", str(out), *option)
    assert result.exit_code == 0, result.output
    files = {path.name for path in (out / "trace").glob("*")}
    assert ({"run.json", "places.jsonl", "rank-0.jsonl"} <= files) == kept
    profile = {"profile-rank-0.json.gz", "operations-0.json"}
    assert profile & files == (profile if "--trace" in option else set())
