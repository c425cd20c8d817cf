"""Output folders: what an earlier run left is kept, continued or replaced, never mixed."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorafusion.errors import OutputError
from lorafusion.training.folders import claim_folder, prepare_job_folder
from lorafusion.training.metrics import JobMetrics


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """A job's folder after a run, with a note of the user's own."""
    folder = tmp_path / "job"
    metrics = JobMetrics(folder, resume_step=None)
    metrics.train(1, {"loss": 2.0})
    metrics.close()
    for name in ("adapter", "checkpoints"):
        (folder / name).mkdir()
        (folder / name / "file").touch()
    (folder / "notes.txt").write_text("mine")
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_results_are_not_written_over_unasked(used: Path) -> None:
    before = names(used)
    with pytest.raises(OutputError, match=r"--resume.*--overwrite"):
        prepare_job_folder(used, resume=False, overwrite=False)
    prepare_job_folder(used, resume=True, overwrite=False)
    assert names(used) == before


def test_overwriting_removes_all_results_and_nothing_else(used: Path) -> None:
    assert "tensorboard" in names(used)
    prepare_job_folder(used, resume=False, overwrite=True)
    assert names(used) == {"notes.txt"}


def test_a_folder_belongs_to_one_run_at_a_time(tmp_path: Path) -> None:
    with claim_folder(tmp_path / "run"):
        with (
            pytest.raises(OutputError, match="in use by another run"),
            claim_folder(tmp_path / "run"),
        ):
            pass
    with claim_folder(tmp_path / "run"):
        pass
