"""Folders of runs that were killed, resumed, moved, or kept no trace; and of no run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lorafusion.errors import OutputError
from lorafusion.reports.figures import figures
from lorafusion.reports.rank_lines import MemorySample
from lorafusion.reports.reading import read_run
from tests.plans.samples import SMALL, in_seconds
from tests.reports.conftest import FACTS

Write = Callable[..., Path]


def test_a_moved_folder(copied: Path, real: Path) -> None:
    """Metrics are read where the folder is now."""
    for path in copied.glob("*/metrics.jsonl"):
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:1]))
    assert {len(job.records) for job in read_run(copied).jobs} == {1}
    assert min(len(job.records) for job in read_run(real).jobs) > 3


def test_a_killed_run(copied: Path) -> None:
    """Lines that are cut off, and no result: the rest is shown."""
    (copied / "result.json").unlink()
    for path in [*copied.glob("*/metrics.jsonl"), *(copied / "trace").glob("*.jsonl")]:
        path.write_bytes(path.read_bytes()[:-9])
    reading = read_run(copied)
    assert reading.halves is not None and any(reading.memory)
    assert all(job.records for job in reading.jobs) and not reading.result
    assert any("ended from outside" in text for text in reading.missing)


def test_a_result_of_an_earlier_session_is_left_out(copied: Path) -> None:
    facts = copied / "trace" / "run.json"
    document = json.loads(facts.read_text())
    facts.write_text(json.dumps({**document, "started": "2999-01-01T00:00:00+00:00"}))
    reading = read_run(copied)
    assert not reading.result and [job.name for job in reading.jobs]
    assert any("earlier session" in text for text in reading.missing)


def test_no_trace(copied: Path) -> None:
    shutil.rmtree(copied / "trace")
    reading = read_run(copied)
    assert reading.halves is None and not any(reading.memory) and reading.result
    assert len(reading.jobs) == 4 and all(job.records for job in reading.jobs)
    assert any("--no-trace" in text for text in reading.missing)


def test_nothing_but_metrics(copied: Path) -> None:
    shutil.rmtree(copied / "trace")
    (copied / "result.json").unlink()
    assert [job.name for job in read_run(copied).jobs] == sorted(
        path.parent.name for path in copied.glob("*/metrics.jsonl")
    )


@pytest.mark.parametrize("name", ["result.json", "trace/run.json", "trace/operations-0.json"])
@pytest.mark.parametrize("text", ["{oops", "[1]", ""])
def test_a_broken_document_is_named(copied: Path, name: str, text: str) -> None:
    (copied / name).write_text(text)
    reading = read_run(copied)
    assert any(name.rpartition("/")[2] in said for said in reading.missing)
    assert reading.halves is not None and figures(reading)["stages"]


def test_broken_lines_are_named(copied: Path) -> None:
    (copied / "trace" / "places.jsonl").write_text('{"kind":"session","session":1}\n')
    path = copied / "wide" / "metrics.jsonl"
    path.write_bytes(b"{oops\n" + path.read_bytes())
    reading = read_run(copied)
    assert reading.halves is None
    assert {job.name for job in reading.jobs if not job.records} == {"wide"}
    said = "\n".join(reading.missing)
    assert "places.jsonl" in said and "metrics of wide" in said


def test_a_stage_without_a_file(write_known: Write) -> None:
    folder = write_known()
    (folder / "trace" / "rank-1.jsonl").unlink()
    reading = read_run(folder)
    assert reading.halves is None and reading.memory[0] and not reading.memory[1]
    assert any("rank-1.jsonl" in text for text in reading.missing)


def test_memory_of_the_last_session_alone(write_known: Write) -> None:
    folder = write_known()
    with (folder / "trace" / "rank-0.jsonl").open("a") as file:
        file.write('{"kind":"session","session":2,"began":1.0,"stage":0,"stages":2}\n')
    assert read_run(folder).memory[0] == ()


def test_a_base_of_which_not_all_is_resident() -> None:
    sizes = {"runtime": 30, "base": 100, "adapters": 2, "gradients": 3, "optimizer": 4}
    sample = MemorySample.of({"at": 1.0, "total": 99, **sizes})
    assert sample.kinds == (30, 60, 2, 3, 4, 0) and sample.total == 99


def test_facts_of_other_stages(write_known: Write) -> None:
    found = figures(read_run(write_known(facts={**FACTS, "layers": [[0, 4]]})))
    assert found["mfu"] is None and found["pipeline"]["steps"] == 4
    assert found["pipeline"]["measured_s"] == pytest.approx(
        in_seconds(SMALL, load_s=1e-3).makespan_s
    )


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is no folder"):
        read_run(tmp_path / "none")
    (tmp_path / "docs").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match=r"no run's output folder.*lorafusion train"):
        read_run(tmp_path)
