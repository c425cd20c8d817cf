from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from lorafusion.errors import OutputError
from lorafusion.training.metrics import JobMetrics, read_metrics


def train_values(step: int, loss: float | None = None) -> dict[str, float | int]:
    return {
        "epoch": 1,
        "loss": 1 / (step + 2) if loss is None else loss,
        "learning_rate": 2e-4,
        "grad_norm": 0.5,
        "tokens": 100,
        "trained_tokens": 40,
        "tokens_per_s": 123.4,
    }


def write_steps(folder: Path, steps: range, resume_step: int | None = None) -> None:
    metrics = JobMetrics(folder, resume_step=resume_step)
    for step in steps:
        metrics.train(step, train_values(step))
    metrics.close()


def kinds_and_steps(folder: Path) -> list[tuple[str, int]]:
    return [(record["kind"], record["step"]) for record in read_metrics(folder)]


def board(folder: Path) -> dict[str, dict[int, float]]:
    """All TensorBoard scalars as TensorBoard itself reads them: tag -> step -> value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in tags}


def test_records_come_back_with_every_bit(tmp_path: Path):
    metrics = JobMetrics(tmp_path / "job", resume_step=None)
    metrics.eval(0, {"loss": 0.1 + 0.2, "tokens": 7})
    metrics.train(1, train_values(1, loss=5e-324))
    assert len(read_metrics(tmp_path / "job")) == 2  # readable before it is closed
    metrics.close()

    first, second = read_metrics(tmp_path / "job")
    assert first.pop("time") <= second.pop("time")
    assert first == {"kind": "eval", "step": 0, "loss": 0.1 + 0.2, "tokens": 7}
    assert second == {"kind": "train", "step": 1, **train_values(1, loss=5e-324)}
    assert read_metrics(tmp_path / "none") == []


def test_nonfinite_values_are_null_and_named_and_the_file_stays_json(tmp_path: Path):
    metrics = JobMetrics(tmp_path, resume_step=None)
    values = train_values(1) | {"loss": math.nan, "grad_norm": math.inf}
    metrics.train(1, values)
    metrics.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    (record,) = read_metrics(tmp_path)
    assert record["loss"] is None
    assert record["grad_norm"] is None
    assert record["nonfinite"] == ["loss", "grad_norm"]
    assert record["tokens_per_s"] == 123.4
    assert values["grad_norm"] == math.inf


def test_resume_removes_what_came_after_and_goes_on(tmp_path: Path):
    metrics = JobMetrics(tmp_path, resume_step=None)
    metrics.eval(0, {"loss": 3.0})
    for step in range(1, 6):
        metrics.train(step, train_values(step, loss=100.0 + step))
        if step in (2, 4):
            metrics.eval(step, {"loss": 3.0 - step / 10})
    metrics.close()
    before = (tmp_path / "metrics.jsonl").read_bytes().splitlines()

    metrics = JobMetrics(tmp_path, resume_step=2)
    metrics.eval(2, {"loss": 77.0})  # done already by the interrupted run
    metrics.train(3, train_values(3, loss=1.0))
    metrics.train(4, train_values(4, loss=2.0))
    metrics.eval(4, {"loss": 1.0})
    metrics.close()

    after = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    assert after[:4] == before[:4]
    assert kinds_and_steps(tmp_path) == [
        *[("eval", 0), ("train", 1), ("train", 2), ("eval", 2)],
        *[("train", 3), ("train", 4), ("eval", 4)],
    ]
    assert [r["loss"] for r in read_metrics(tmp_path)][3:] == [2.8, 1.0, 2.0, 1.0]
    scalars = board(tmp_path)
    assert scalars["train/loss"] == {1: 101.0, 2: 102.0, 3: 1.0, 4: 2.0}
    assert scalars["eval/loss"] == {
        0: 3.0,
        2: pytest.approx(2.8),
        4: 1.0,
    }


@pytest.mark.parametrize(
    "tail", [b'{"kind": "tra', b"\0\0\0", b'{"kind": "train", "step": 3}', b"7\n"]
)
def test_a_torn_end_is_cut_on_resume(tmp_path: Path, tail: bytes):
    write_steps(tmp_path, range(1, 3))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    assert kinds_and_steps(tmp_path) == [("train", 1), ("train", 2)]
    write_steps(tmp_path, range(3, 5), resume_step=2)
    assert kinds_and_steps(tmp_path) == [("train", s) for s in range(1, 5)]


def test_a_fresh_start_forgets_the_run_before(tmp_path: Path):
    write_steps(tmp_path, range(1, 6))
    write_steps(tmp_path, range(1, 3))
    assert kinds_and_steps(tmp_path) == [("train", 1), ("train", 2)]
    assert list(board(tmp_path)["train/loss"]) == [1, 2]


def test_tensorboard_shows_the_five_curves(tmp_path: Path):
    metrics = JobMetrics(tmp_path, resume_step=None)
    metrics.train(1, train_values(1, loss=1.5))
    metrics.eval(1, {"loss": 2.5, "tokens": 3})
    metrics.sync()
    expected = {
        "train/loss": {1: 1.5},
        "train/learning_rate": {1: pytest.approx(2e-4)},
        "train/grad_norm": {1: 0.5},
        "train/tokens_per_s": {1: pytest.approx(123.4)},
        "eval/loss": {1: 2.5},
    }
    assert board(tmp_path) == expected
    metrics.close()


def test_an_unreadable_line_in_the_middle_is_named(tmp_path: Path):
    write_steps(tmp_path, range(1, 3))
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + "garbage\n" + lines[1])
    with pytest.raises(OutputError, match=r"metrics\.jsonl:2"):
        read_metrics(tmp_path)


def test_a_folder_that_is_a_file_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        JobMetrics(tmp_path / "file", resume_step=None)


FULL_DISK = """
import resource, sys
from pathlib import Path
from lorafusion.errors import OutputError
from lorafusion.training.metrics import JobMetrics
metrics = JobMetrics(Path(sys.argv[1]), resume_step=None)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for step in range(1, 100):
    try:
        metrics.train(step, {"loss": 1.0})
    except OutputError as error:
        sys.stderr.write(f"step {step}: {error}")
        sys.exit(7)
"""


def test_a_full_disk_is_an_error_and_resume_mends_the_file(tmp_path: Path):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 7, done.stderr
    assert "metrics.jsonl" in done.stderr
    assert "File too large" in done.stderr
    data = (tmp_path / "metrics.jsonl").read_bytes()
    assert len(data) == 1000  # the last line is torn
    whole = kinds_and_steps(tmp_path)
    assert len(whole) == data.count(b"\n") > 5
    last = whole[-1][1]
    assert done.stderr.startswith(f"step {last + 1}:")  # the torn line's own step, not the next
    write_steps(tmp_path, range(last + 1, last + 2), resume_step=last)
    assert kinds_and_steps(tmp_path) == [*whole, ("train", last + 1)]


def test_importing_the_module_does_not_import_tensorboard():
    code = "import sys, lorafusion.training.metrics; sys.exit('tensorboard' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0


def test_records_are_json_lines(tmp_path: Path):
    write_steps(tmp_path, range(1, 4))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
