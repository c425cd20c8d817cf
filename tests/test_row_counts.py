"""Counts of rows, kept by the file's content and by how it is read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lorafusion import row_counts
from lorafusion.errors import DataError
from lorafusion.jobs.schema import DatasetConfig
from lorafusion.row_counts import RowCount, count_rows


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORAFUSION_HOME", str(tmp_path / "home"))
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": "a", "completion": f"{i}"}) + "\n" for i in range(5))
    )
    return file


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    done: list[str] = []
    read = row_counts._read

    def counted(dataset: DatasetConfig) -> RowCount:
        done.append(dataset.path)
        return read(dataset)

    monkeypatch.setattr(row_counts, "_read", counted)
    return done


def test_a_file_is_read_once(data: Path, reads: list[str]) -> None:
    config = DatasetConfig(path=str(data))
    assert [count_rows(config).rows for _ in range(3)] == [5, 5, 5]
    assert len(reads) == 1


def test_a_change_that_leaves_size_and_time_is_seen(data: Path, reads: list[str]) -> None:
    config = DatasetConfig(path=str(data))
    count_rows(config)
    about = data.stat()
    text = data.read_text()
    data.write_text(text.replace("\n{", " {", 1))  # two objects in one line
    os.utime(data, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert data.stat().st_size == about.st_size
    with pytest.raises(DataError, match=r"rows\.jsonl:1: is not JSON"):
        count_rows(config)
    data.write_text(text + text)
    assert count_rows(config).rows == 10
    assert len(reads) == 3


def test_how_it_is_read_counts(data: Path, reads: list[str]) -> None:
    assert count_rows(DatasetConfig(path=str(data))).rows == 5
    with pytest.raises(DataError):
        count_rows(DatasetConfig(path=str(data), type="messages"))
    assert len(reads) == 2


def test_bad_data_and_no_data_are_told_each_time(data: Path, reads: list[str]) -> None:
    data.write_text('{"prompt": "a"\n')
    for path in (data, data, data.with_name("gone.jsonl"), data.parent / "home"):
        with pytest.raises(DataError):
            count_rows(DatasetConfig(path=str(path)))
    assert len(reads) == 4
