"""Every snippet of docs/python-api.md runs, in order, on a tiny base."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "python-api.md"


def test_the_snippets_run(
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAFUSION_HOME", str(tmp_path / "home"))
    shutil.copytree(tiny_base, "path/to/base")
    Path("rows.jsonl").write_text('{"prompt": " red", "completion": " blue"}\n' * 3)
    Path("jobs.yaml").write_text(
        "base_model: path/to/base\njobs: [{name: x, dataset: {path: rows.jsonl}, max_steps: 1}]\n"
    )
    snippets = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(snippets) == 5
    names: dict[str, object] = {}
    for number, snippet in enumerate(snippets):
        exec(compile(snippet, f"{PAGE.name}, snippet {number}", "exec"), names)
    assert Path("runs/ranks/r16/adapter/adapter_config.json").exists()
    assert Path("runs/from-file/x/adapter/adapter_config.json").exists()
    output = capsys.readouterr().out
    assert re.search(r"^r4 succeeded \d", output, re.MULTILINE)
    assert re.search(r"^patient (succeeded None|paused stopped by Patience)", output, re.MULTILINE)


def test_every_public_name_is_told_of() -> None:
    import lorafusion

    text = PAGE.read_text()
    silent = {"__version__", "Run", "LorafusionError", "JobReady"}
    missing = [name for name in lorafusion.__all__ if name not in text and name not in silent]
    assert not missing
