"""The study of the job service, small."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from lorafusion.bench import results, service_study
from lorafusion.bench.service_store import measure_store
from lorafusion.jobs.store.database import Database
from lorafusion.jobs.store.reading import list_jobs
from lorafusion.jobs.store.states import State


def test_a_store_is_filled_and_looked_at(tmp_path: Path) -> None:
    found = measure_store(tmp_path, jobs=40, residents=3, repeats=2)
    assert all(0 < took["median"] <= took["most"] for took in found["took"].values())
    jobs = list_jobs(Database(f"sqlite:///{tmp_path / 'store.db'}"))
    assert len(jobs) == 40 + 2 * 2 * found["file"]  # what was submitted to be timed, too
    assert sum(job.steps > 0 for job in jobs) <= 3
    assert [job.state for job in jobs].count(State.RECOVERING) == 3  # the server has left


@pytest.mark.slow
@pytest.mark.multiproc
def test_the_whole(tiny_base: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    begin, end = "<!-- bench: service: begin -->", "<!-- bench: service: end -->"
    page.write_text(f"{begin}\n{end}\n")
    import typer

    app = typer.Typer()
    app.command()(service_study.main)
    arguments = ["--base", str(tiny_base), "--jobs", "50", "--repeats", "1", "--steps", "3"]
    done = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "out"), "-w", str(page)])
    assert done.exit_code == 0, done.output
    found = results.read(tmp_path / "out" / "service.json")
    assert len(found["joins"]["seconds"]) == 3
    assert service_study.markdown(found) in page.read_text()
