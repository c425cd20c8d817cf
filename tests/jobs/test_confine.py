"""Paths of jobs that are confined to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorafusion.errors import DataError
from lorafusion.jobs.confine import check_inside
from lorafusion.jobs.schema import JobSpec


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "space"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "rows.jsonl").write_text("")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "rows.jsonl").write_text("")
    (folder / "link").symlink_to(tmp_path / "secret")
    return folder


def job(path: str, **more: Any) -> JobSpec:
    return JobSpec.model_validate({"name": "a", "dataset": {"path": path}, **more})


def test_what_lies_inside_and_ids_of_the_hub(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    for path in ("data/rows.jsonl", str(workspace / "data"), "org/dataset", "./data/../data"):
        check_inside(job(path), workspace / "jobs" / "a", workspace)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"path": "{out}/rows.jsonl"}, "dataset.path"),
        ({"path": "../secret/rows.jsonl"}, "dataset.path"),
        ({"path": "link/rows.jsonl"}, "dataset.path"),
        ({"path": "/no/such/file"}, "dataset.path"),
        ({"path": "org/x", "chat_template": "{out}/rows.jsonl"}, "dataset.chat_template"),
        ({"path": "data", "data_files": "../link/rows.jsonl"}, "dataset.data_files"),
    ],
)
def test_what_leads_out(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], field: str
) -> None:
    monkeypatch.chdir(workspace)
    outside = str(workspace.parent / "secret")
    given = {name: value.format(out=outside) for name, value in settings.items()}
    path = given.pop("path")
    spec = JobSpec.model_validate({"name": "a", "dataset": {"path": path, **given}})
    with pytest.raises(DataError, match=f"{field} is .* leads out of"):
        check_inside(spec, workspace / "a", workspace)


def test_results_and_starting_points(workspace: Path) -> None:
    with pytest.raises(DataError, match="its folder is"):
        check_inside(job("org/x"), workspace.parent / "secret", workspace)
    start = job("org/x", adapter={"init_from": str(workspace.parent / "secret")})
    with pytest.raises(DataError, match=r"adapter\.init_from is"):
        check_inside(start, workspace / "a", workspace)
    with pytest.raises(DataError, match=r"eval\.dataset\.path is"):
        held_out = {"dataset": {"path": str(workspace.parent / "secret")}}
        check_inside(job("org/x", eval=held_out), workspace / "a", workspace)
