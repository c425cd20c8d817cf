"""``lorafusion report`` and the report that `train` leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner, Result

from lorafusion.cli import build_app

Write = Callable[..., Path]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(build_app(), list(arguments))


def test_train_leaves_one_and_report_writes_it_anew(write_run: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    trained = call("train", str(write_run({"name": "only"})), "--output", str(out))
    assert trained.exit_code == 0 and "no report" not in trained.output
    first = json.loads((out / "report.json").read_text())
    assert first["jobs"][0]["steps"] == 2 and first["mfu"]["mfu"] > 0
    assert (out / "report.html").stat().st_size > 10_000
    (out / "report.html").unlink()
    result = call("report", str(out), "--json")
    assert result.exit_code == 0, result.output
    again = json.loads(result.stdout)
    assert {**again, "written": 0} == {**first, "written": 0}
    assert (out / "report.html").exists()
    plain = call("report", str(out))
    assert plain.stdout.splitlines() == [str(out / "report.html"), str(out / "report.json")]
    shutil.rmtree(out / "trace")
    assert "--no-trace" in call("report", str(out)).stderr


def test_a_report_that_cannot_be_written_fails_no_run(write_run: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "report.html").mkdir(parents=True)
    trained = call("train", str(write_run({"name": "only"})), "--output", str(out))
    assert trained.exit_code == 0
    assert "note: no report was written" in trained.output
    result = call("report", str(out))
    assert result.exit_code == 2 and "cannot be written" in result.stderr


def test_no_run_ends_with_2(tmp_path: Path) -> None:
    for folder, said in ((tmp_path, "no run's output folder"), (tmp_path / "x", "is no folder")):
        result = call("report", str(folder))
        assert result.exit_code == 2 and result.stderr.startswith("error: ")
        assert said in " ".join(result.stderr.split())
    assert list(tmp_path.iterdir()) == []
