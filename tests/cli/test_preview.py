"""``lorafusion preview`` shows counts, and exactly which text is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from lorafusion.cli import preview
from lorafusion.errors import DataError, JobFileError

USER = {"role": "user", "content": "yes or no"}
RUN = """
base_model: {base}
jobs:
  - name: chat
    dataset: {{path: {folder}/chat.jsonl}}
    adapter: {{type: lora}}
    eval: {{dataset: {{path: {folder}/plain.jsonl}}}}
  - name: plain
    dataset: {{path: {folder}/plain.jsonl}}
    adapter: {{type: lora}}
    max_seq_len: 12
    eval: {{val_size: 1}}
  - name: lost
    dataset: {{path: {folder}/lost.jsonl}}
    adapter: {{type: lora}}
"""


@pytest.fixture
def run_file(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORAFUSION_HOME", str(tmp_path / "home"))
    answer = {"role": "assistant", "content": "no\x1b[31m [bold]"}
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": [USER, answer]}) + "\n")
    rows = [{"prompt": "the fox", "completion": " jumps" * n} for n in (1, 30)]
    (tmp_path / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "run.yaml"
    file.write_text(RUN.format(base=tiny_base, folder=tmp_path))
    return file


def _preview(*args: str, **env: str) -> Result:
    app = typer.Typer()
    app.command()(preview.command)
    return CliRunner().invoke(app, list(args), env=env)


def test_trained_text_stands_in_brackets(run_file: Path) -> None:
    out = _preview(str(run_file), "--job", "chat").output
    sample = "<|im_start|>user\nyes or no<|im_end|>\n<|im_start|>assistant\n"
    assert f"{sample}⟦no␛[31m [bold]<|im_end|>⟧\n" in out
    assert "rows 1: kept 1" in out
    assert "held out, a dataset of its own:" in out


def test_counts_cuts_and_held_out_rows(run_file: Path) -> None:
    out = _preview(str(run_file), "--job", "plain", "--rows", "1").output
    assert "rows 2: kept 2 (cut to 12 tokens: 1), dropped 0" in out
    assert "held out 1 samples, 1 left to train on" in out
    assert "the fox⟦ jumps<|im_end|>⟧" in out
    assert "row 2:" not in out


def test_trained_text_is_coloured_on_a_terminal(run_file: Path) -> None:
    args = (str(run_file), "--job", "plain", "--rows", "1")
    out = _preview(*args, FORCE_COLOR="1", TERM="xterm-256color").output
    assert "\x1b[1;32m jumps<|im_end|>\x1b[0m" in out
    assert "⟦" not in out
    plain = _preview(*args, FORCE_COLOR="1", TERM="xterm-256color", NO_COLOR="1").output
    assert "⟦ jumps<|im_end|>⟧" in plain


def test_an_unknown_job_lists_the_names(run_file: Path) -> None:
    error = _preview(str(run_file), "--job", "chatt").exception
    assert isinstance(error, JobFileError)
    assert "no job named 'chatt'; allowed: chat, plain, lost" in str(error)


def test_a_missing_dataset_is_named(run_file: Path) -> None:
    error = _preview(str(run_file), "--job", "lost").exception
    assert isinstance(error, DataError)
    assert "lost.jsonl: no such file" in str(error)
