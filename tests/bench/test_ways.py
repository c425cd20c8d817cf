"""Both sides on the same inputs, in this process: they must train the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorafusion.bench import baseline, ours
from lorafusion.bench.inputs import inputs_folder, write_inputs
from lorafusion.bench.settings import Settings
from lorafusion.jobs.loading import load_run_file

Losses = dict[tuple[str, int], float]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def settings(job_file: Path, tmp_path: Path) -> Settings:
    """Five steps without dropout."""
    spec = load_run_file(job_file)
    return Settings(job_file, spec, ("peft",), 1, 5, (0.0,), tmp_path / "out")


def written(settings: Settings, folder: Path) -> Path:
    write_inputs(settings, folder, status=lambda text: None)
    return inputs_folder(folder, settings.dropouts[0])


def losses(printed: str) -> Losses:
    events = [json.loads(line) for line in printed.splitlines() if line.startswith('{"event"')]
    assert events[-1]["event"] == "done"
    assert events[-1]["peak_rss_mb"] > 100
    seconds: dict[str, float] = {}
    for event in events[:-1]:
        assert event["s"] >= seconds.get(event["job"], 0) > -1
        seconds[event["job"]] = event["s"]
    return {(event["job"], event["step"]): event["loss"] for event in events[:-1]}


def run_ours(folder: Path, capsys: pytest.CaptureFixture[str]) -> Losses:
    capsys.readouterr()
    assert ours.main(folder) == 0
    return losses(capsys.readouterr().out)


def run_baseline(folder: Path, form: str, capsys: pytest.CaptureFixture[str]) -> Losses:
    capsys.readouterr()
    baseline.main(folder, form)
    return losses(capsys.readouterr().out)


def test_ours_and_padded_have_the_same_losses(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(settings, tmp_path / "inputs")
    expected = run_baseline(folder, "padded", capsys)
    assert len(expected) == 10
    assert run_ours(folder, capsys) == pytest.approx(expected, rel=1e-5)
    # Rates, clipping, decay and AdamW count: the losses have moved by far more than that.
    assert abs(expected["wide", 5] - expected["wide", 1]) > 0.05


def test_the_fast_forms_loss_is_the_same_in_float64(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = replace(settings, spec=settings.spec.model_copy(update={"dtype": "float64"}))
    folder = written(wide, tmp_path / "inputs")
    for name in ("wide", "narrow"):  # in the batches as they come: only how they are run differs
        file = folder / name / "job.json"
        job = json.loads(file.read_text())
        file.write_text(json.dumps({**job, "sorted_batches": job["batches"]}))
    found = run_baseline(folder, "sorted", capsys)
    assert run_ours(folder, capsys) == pytest.approx(found, rel=1e-9)


def test_dropout_changes_both_sides(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = written(settings, tmp_path / "inputs")
    dropped = written(replace(settings, dropouts=(0.3,)), tmp_path / "inputs")
    for run in (lambda f: run_ours(f, capsys), lambda f: run_baseline(f, "padded", capsys)):
        without, with_dropout = run(plain), run(dropped)
        assert with_dropout["wide", 1] == without["wide", 1]  # B is zero before the first step
        assert with_dropout["wide", 5] != without["wide", 5]


def test_a_job_that_fails_is_said(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(settings, tmp_path / "inputs")
    (tmp_path / "narrow.jsonl").unlink()
    assert ours.main(folder) == 1
    assert "narrow" in capsys.readouterr().err
