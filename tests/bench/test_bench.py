"""``lorafusion bench train`` as users run it, on a tiny base."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lorafusion.cli import bench, build_app
from lorafusion.errors import TurnError

ROOT = Path(__file__).parents[2]
PNG = b"\x89PNG\r\n"


def bench_train(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lorafusion", "bench", "train", *map(str, args)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False
    )


def invoke(*args: object) -> Result:
    return CliRunner().invoke(build_app(), ["bench", "train", *map(str, args)])


def losses(turn: dict[str, Any]) -> dict[tuple[str, int], float]:
    return {(step["job"], step["step"]): step["loss"] for step in turn["steps"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.mark.slow  # twenty processes that load torch
def test_against_all(job_file: Path, folder: Path) -> None:
    done = bench_train(
        *(
            job_file,
            "--against",
            "peft,trl,deterministic",
            "--rounds",
            "2",
            "--steps",
            "2",
            "-o",
            folder,
        )
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "bench.json").read_text())
    assert not found["partial"]
    assert len(found["turns"]) == 2 * 2 * 6
    first = {turn["way"]: turn for turn in found["turns"][:6]}
    assert list(first) == list(found["ways"])
    assert losses(first["lorafusion"]) == pytest.approx(losses(first["peft-padded"]), rel=1e-5)
    # TRL has the batches of peft-sorted where no epoch ends among them: in narrow.
    for step in (1, 2):
        key = ("narrow", step)
        assert losses(first["trl"])[key] == pytest.approx(losses(first["peft-sorted"])[key], 1e-5)
    for turn in found["turns"]:
        assert turn["tokens"] == sum(job["tokens"] for job in found["jobs"])
        assert turn["tokens_per_s"] == pytest.approx(turn["tokens"] / turn["seconds"])
        assert turn["peak_rss_mb"] > 100
    plain, dropped = found["comparisons"]
    assert (plain["dropout"], dropped["dropout"]) == (0.0, 0.05)
    worst = [x["worst_step"] for x in plain["losses"] if x["way"] == "peft-padded"]
    assert max(worst) < 1e-5
    # The same masks too.
    for comparison in (plain, dropped):
        apart = [x["worst_step"] for x in comparison["losses"] if x["way"].endswith("ministic")]
        assert len(apart) == 2 and max(apart) < 1e-5
    by_round = [t for t in found["turns"] if t["dropout"] == 0.05 and t["way"] == "lorafusion"]
    assert losses(by_round[0]) == losses(by_round[1])
    assert losses(by_round[0]) != losses(first["lorafusion"])
    shares = {way["way"]: way["of_limit"] for way in plain["ways"]}
    assert shares["limit"] is None and shares["lorafusion"]["median"] > 0
    assert {loss["way"] for loss in plain["losses"]}.isdisjoint({"limit", "lorafusion"})
    assert found["machine"]["cores"] >= 1
    assert found["versions"]["trl"]
    assert (folder / "bench.png").read_bytes().startswith(PNG)
    for words in ("against the strongest baseline", "against the weakest baseline", "worst step"):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--against", "axolotl"], "allowed: peft, trl"),
        (["--dropout", "1"], "from 0 to below 1"),
        (["--rounds", "0"], "--rounds"),
        (["--dtype", "int8"], "--dtype"),
    ],
)
def test_bad_options(job_file: Path, arguments: list[str], words: str) -> None:
    result = invoke(job_file, *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_bad_job_file(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "bad.yaml").write_text("base_model: x\njobs: [{name: a/b}]\n")
    result = invoke(tmp_path / "bad.yaml", "-o", folder)
    assert result.exit_code == 2
    assert "bad.yaml:2: jobs[0].name: found" in result.stderr
    assert not folder.exists()


def test_a_missing_package(job_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name != "peft" or None)
    result = invoke(job_file, "-o", folder)
    assert result.exit_code == 2
    assert "pip install 'lorafusion[bench]'" in result.stderr
    assert not folder.exists()


def test_data_that_cannot_be_read_is_bad_input(job_file: Path, folder: Path) -> None:
    (job_file.parent / "narrow.jsonl").write_text("{")
    result = invoke(job_file, "-o", folder)
    assert result.exit_code == 2
    assert "narrow.jsonl" in result.stderr
    assert not (folder / "bench.json").exists()


def test_a_failed_turn_is_no_bad_input(
    job_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise TurnError("trl, round 1: ended with code 1")

    monkeypatch.setattr(bench, "_measure", fail)
    result = invoke(job_file, "-o", folder)
    assert result.exit_code == 1
    assert "trl, round 1" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_unwinds_and_says_what_is_kept(
    job_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    unwound: list[bool] = []

    def stop(*_: object) -> None:
        folder.mkdir()
        (folder / "bench.json").write_text("{}")
        try:
            os.kill(os.getpid(), number)
        finally:
            unwound.append(True)

    monkeypatch.setattr(bench, "_measure", stop)
    before = signal.getsignal(number)
    result = invoke(job_file, "-o", folder)
    assert result.exit_code == 128 + number
    assert unwound == [True]
    assert "marked as partial" in result.stderr
    assert signal.getsignal(number) is before
