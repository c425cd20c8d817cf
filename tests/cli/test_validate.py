"""``lorafusion validate`` and ``lorafusion schema``, as a user meets them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from lorafusion import preflight
from lorafusion.cli import schema, validate
from lorafusion.errors import ModelError

RUN = """\
base_model: BASE
output_dir: OUT
defaults: {max_seq_len: 64}
jobs:
  - name: first
    dataset: {path: DATA}
    adapter: {r: 4, target_modules: [q_proj, v_proj]}
    global_batch_size: 4
    num_epochs: 2
    eval: {val_size: 2}
  - name: second
    dataset: {path: DATA, type: prompt_completion}
    max_steps: 3
"""

Invoke = Callable[..., Result]


def filled(files: dict[str, Any], text: str = RUN) -> str:
    for name, path in files.items():
        text = text.replace(name, str(path))
    return text


@pytest.fixture
def files(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("LORAFUSION_HOME", str(tmp_path / "home"))
    data = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"the quick {i}", "completion": " fox"} for i in range(11)]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    return {"BASE": tiny_base, "DATA": data, "OUT": tmp_path / "out"}


@pytest.fixture
def invoke(tmp_path: Path) -> Invoke:
    app = typer.Typer()
    app.command("validate")(validate.command)
    app.command("schema")(schema.command)

    def run(text: str, *options: str) -> Result:
        (tmp_path / "run.yaml").write_text(text)
        return CliRunner().invoke(app, ["validate", str(tmp_path / "run.yaml"), *options])

    return run


def test_a_good_file_is_ok(files: dict[str, Any], invoke: Invoke) -> None:
    result = invoke(filled(files))
    assert result.exit_code == 0, result.output
    assert "OK" in result.output
    # 9 training rows in batches of 4, twice: 6 steps. 2 layers of q and v: 4 linears, of 14.
    assert (
        f"job=first  dataset={files['DATA']}  rows=9  rank=4  modules=4  steps=6" in result.output
    )
    assert f"job=second  dataset={files['DATA']}  rows=11  rank=8  modules=14  steps=3" in (
        result.output
    )


def test_json(files: dict[str, Any], invoke: Invoke) -> None:
    answer = json.loads(invoke(filled(files), "--json").output)
    assert answer["ok"] is True
    assert [job["name"] for job in answer["jobs"]] == ["first", "second"]
    result = invoke("jobs: 3\n", "--json")
    assert result.exit_code == 2
    answer = json.loads(result.output)
    assert answer["ok"] is False
    assert {problem["where"] for problem in answer["problems"]} == {"jobs", "base_model"}


def test_problems_are_lines_that_editors_can_follow(
    tmp_path: Path, files: dict[str, Any], invoke: Invoke
) -> None:
    result = invoke(filled(files).replace("r: 4", "r: 0").replace("max_steps", "max_step"))
    assert result.exit_code == 2
    first, second, summary = result.output.splitlines()
    assert first.startswith(f"{tmp_path}/run.yaml:7: jobs[0].adapter.r: found 0; allowed:")
    assert second.startswith(f"{tmp_path}/run.yaml:13: jobs[1].max_step: found the unknown field")
    assert summary.endswith("run.yaml: 2 problems")


@pytest.mark.parametrize(
    ("old", "new", "place", "phrase"),
    [
        ("BASE", "BASE/no", "1: base_model", "no folder"),
        ("BASE", "OUT.enc", "1: base_model", "no causal LM"),
        ("DATA}", "DATA.no}", "6: jobs[0].dataset.path", "no such"),
        ("DATA}", "OUT}", "6: jobs[0].dataset.path", "folder"),
        ("DATA,", "OUT.bad,", "12: jobs[1].dataset.path", "bad:2: is not J"),
        ("DATA,", "OUT.empty,", "12: jobs[1].dataset.path", "no rows"),
        ("DATA,", "OUT.columns,", "12: jobs[1].dataset.path", "found a"),
        ("val_size: 2", "dataset: {path: OUT.bad}", "10: jobs[0].eval.dataset.path", "bad:2"),
        ("val_size: 2", "val_size: 11", "10: jobs[0].eval.val_size", "0 to 10 of the 11 rows"),
        ("v_proj]", "nothing]", "7: jobs[0].adapter.target_modules", "'nothing' matches no"),
        ("v_proj]", "input_layernorm]", "7: jobs[0].adapter.target_modules", "no linear"),
        ("output_dir: OUT", "output_dir: DATA", "2: output_dir", "is no folder"),
        ("    max_steps: 3", "    output_dir: DATA/x", "13: jobs[1].output_dir", "is no folder"),
    ],
)
def test_what_the_file_names_is_looked_at(
    files: dict[str, Any], invoke: Invoke, old: str, new: str, place: str, phrase: str
) -> None:
    out = str(files["OUT"])
    files["OUT"].mkdir()
    Path(f"{out}.bad").write_text('{"prompt": "a", "completion": "b"}\n{"prompt"\n')
    Path(f"{out}.empty").write_text("\n")
    Path(f"{out}.columns").write_text('{"a": 1}\n')
    Path(f"{out}.enc").mkdir()
    Path(f"{out}.enc/config.json").write_text(
        '{"model_type": "bert", "architectures": ["BertForMaskedLM"]}'
    )
    assert old in RUN
    result = invoke(filled(files, RUN.replace(old, new)))
    assert result.exit_code == 2, result.output
    assert f"run.yaml:{place}: found " in result.output
    assert phrase in result.output
    assert "run.yaml: 1 problem\n" in result.output


def test_every_kind_of_problem_comes_at_once(files: dict[str, Any], invoke: Invoke) -> None:
    text = RUN.replace("DATA", "DATA.no").replace("OUT", "DATA").replace("v_proj", "nothing")
    result = invoke(filled(files, text))
    places = [line.split("run.yaml:")[1].split(": found")[0] for line in result.output.splitlines()]
    assert places == [
        "2: output_dir",
        "6: jobs[0].dataset.path",
        "7: jobs[0].adapter.target_modules",
        "12: jobs[1].dataset.path",
        " 4 problems",
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable(files: dict[str, Any], invoke: Invoke) -> None:
    files["OUT"].mkdir(mode=0o500)
    result = invoke(filled(files))
    assert result.exit_code == 2
    assert "is not writable" in result.output


def test_names_of_other_tools_are_noted(files: dict[str, Any], invoke: Invoke) -> None:
    text = filled(files, RUN.replace("adapter: {r: 4, target", "lora_r: 4\n    adapter: {target"))
    result = invoke(text)
    assert result.exit_code == 0
    assert result.output.splitlines()[0] == "note: line 7: lora_r is taken as adapter.r"
    assert json.loads(invoke(text, "--json").stdout)["notes"] == [
        "line 7: lora_r is taken as adapter.r"
    ]


@pytest.mark.parametrize(("base", "code"), [("someone/model", 0), ("./model", 2)])
def test_a_hub_that_cannot_be_reached_is_a_note(
    files: dict[str, Any],
    invoke: Invoke,
    monkeypatch: pytest.MonkeyPatch,
    base: str,
    code: int,
) -> None:
    def fail(_: str) -> None:
        raise ModelError("cannot be loaded") from OSError("no network")

    monkeypatch.setattr(preflight, "base_module_names", fail)
    result = invoke(filled({**files, "BASE": base}))
    assert result.exit_code == code, result.output
    assert ("note: base_model someone/model" in result.output) == (code == 0)


def test_a_terminal_gets_a_block_for_each_problem(
    files: dict[str, Any], invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    output = invoke(filled(files).replace("[q_proj, v_proj]", "3")).output
    assert "allowed" in output
    assert "jobs[0].adapter.target_modules" in output  # not taken for rich's markup
    assert "second" in invoke(filled(files)).output


def test_schema_prints_json_and_the_page(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(schema.command)
    assert json.loads(CliRunner().invoke(app, []).output)["title"] == "LoRAFusion job file"
    page = Path(__file__).parents[2] / "docs" / "job-file.md"
    assert CliRunner().invoke(app, ["--markdown"]).output == page.read_text()


def test_data_base_and_targets_are_checked_beside_wrong_fields(
    files: dict[str, Any], invoke: Invoke, tmp_path: Path
) -> None:
    (tmp_path / "bad.jsonl").write_text("{oops\n")
    text = filled({**files, "DATA": tmp_path / "bad.jsonl"}).replace(
        "num_epochs: 2", "num_epochs: x"
    )
    result = invoke(text.replace("[q_proj, v_proj]", "[nothing]"))
    assert result.exit_code == 2
    for part in ("jobs[0].num_epochs", "jobs[0].dataset.path", "jobs[1].dataset.path", "'nothing'"):
        assert part in result.stdout, part
    gone = invoke(text.replace(str(files["BASE"]), str(tmp_path / "no_base")))
    assert ":1: base_model: found" in gone.stdout
    assert "jobs[0].num_epochs" in gone.stdout
