"""A sweep from its file to its table, JSON and report; and one that was submitted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lorafusion.cli import build_app
from lorafusion.jobs.store.claims import Claims, Progress, Worker
from lorafusion.jobs.store.database import Database
from lorafusion.jobs.store.reading import list_jobs
from lorafusion.jobs.store.states import State
from tests.plans.test_gantt_html import Elements
from tests.reports.conftest import write_metrics

Write = Callable[..., Path]
# The last rate is one at which no loss stays finite.
RATES = [0.001, 0.02, 3e38]
SWEEP = {"name": "s", "max_steps": 6, "sweep": {"learning_rate": RATES, "adapter.r": [2, 4]}}


def call(*arguments: object, **more: Any) -> Result:
    return CliRunner().invoke(build_app(), [str(argument) for argument in arguments], **more)


def starred(text: str) -> list[list[str]]:
    return [line.split()[1:] for line in text.splitlines() if re.match(r"★ +\d", line)]


@pytest.fixture
def trained(write_run: Write, tmp_path: Path) -> Result:
    """A sweep of six, two of which fail, and a job beside it."""
    file = write_run({"name": "other"}, SWEEP)
    return call("train", file, "--output", tmp_path / "out", "--json")


def test_from_the_file_to_the_report(trained: Result, tmp_path: Path) -> None:
    assert trained.exit_code == 1, trained.output
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert json.loads(trained.stdout) == found
    jobs = {job["name"]: job for job in found["jobs"]}
    assert jobs["other"]["sweep"] is None
    swept = [job for job in found["jobs"] if job["sweep"]]
    assert [job["sweep"] for job in swept] == [
        {"name": "s", "choice": {"learning_rate": rate, "adapter.r": rank}}
        for rate in RATES
        for rank in (2, 4)
    ]
    good = [job for job in swept if job["state"] == "succeeded"]
    assert len(good) == 4 and {job["state"] for job in swept} == {"succeeded", "failed"}
    best = min(good, key=lambda job: job["eval_after"])

    (ranking,) = found["sweeps"]
    assert ranking["metric"] == "held-out loss" and ranking["best"] == [best["name"]]
    losses = [job["loss"] for job in ranking["jobs"][:4]]
    assert losses == sorted(job["eval_after"] for job in good)
    assert [job["rank"] for job in ranking["jobs"]] == [1, 2, 3, 4, None, None]

    text = trained.stderr
    assert "sweep s: 6 jobs by held-out loss after training" in text
    choice = best["sweep"]["choice"]
    chosen = f"{choice['learning_rate']:g} {choice['adapter.r']} {best['eval_after']:.4f}"
    assert starred(text) == [f"{chosen} 6/6 succeeded {best['name']}".split()]
    assert "★ the lowest held-out loss; without a rank: 2" in text

    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["sweeps"] == [ranking]
    elements = Elements((tmp_path / "out" / "report.html").read_text())
    assert elements.texts("h2")[:3] == ["Jobs", "Sweeps", "Losses"]
    assert f"★ {best['eval_after']:.4f}" in elements.texts("td")
    assert any("by learning_rate" in title for title in elements.texts("h3"))


def test_a_report_of_a_run_that_has_no_result_yet(trained: Result, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (whole,) = json.loads((out / "report.json").read_text())["sweeps"]
    (out / "result.json").unlink()
    assert call("report", out).exit_code == 0
    (found,) = json.loads((out / "report.json").read_text())["sweeps"]
    assert found["best"] == whole["best"] and found["fields"] == whole["fields"]
    assert {job["state"] for job in found["jobs"]} == {"unfinished"}


def test_no_sweep_no_table(write_run: Write, tmp_path: Path) -> None:
    result = call("train", write_run({"name": "only"}), "--output", tmp_path / "out", "--json")
    assert json.loads(result.stdout)["sweeps"] == []
    assert "sweep only" not in result.stderr and "★" not in result.stderr
    assert "Sweeps" not in (tmp_path / "out" / "report.html").read_text()


# --- submitted


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.db'}"


def submit(file: Path, store: str) -> list[str]:
    result = call("submit", file, "--store", store, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def work(store: str, losses: dict[str, float | None]) -> None:
    """A worker that has trained all jobs: to held-out losses by rate; None: the job fails."""
    database = Database(store)
    jobs = list_jobs(database)
    claims = Claims(database, Worker("w", "host", 1, jobs[0].group, jobs[0].base))
    claims.enter()
    for job in claims.claim(100):
        loss = losses[str(json.loads(job.spec)["learning_rate"])]
        claims.move(job.id, State.RUNNING)
        claims.progress({job.id: Progress(2, 2, 1.25)})
        if loss is None:
            claims.move(job.id, State.FAILED, reason="no")
        else:
            write_metrics(Path(job.folder), [3.0, 2.0], {0: 9.0, 1: 0.5, 2: loss})
            claims.move(job.id, State.SUCCEEDED)
    database.close()


def test_of_the_store(write_run: Write, tmp_path: Path, store: str) -> None:
    first = submit(write_run({"name": "s", "sweep": {"learning_rate": [1e-3, 1e-2, 1e-1]}}), store)
    waiting = call("sweep", "--store", store)
    assert waiting.exit_code == 0 and "none is best" in waiting.stdout
    assert waiting.stdout.count("pending") == 3

    work(store, {"0.001": 2.5, "0.01": 1.5, "0.1": None})
    page = tmp_path / "page.html"
    result = call("sweep", "s", "--store", store, "--html", page)
    assert result.exit_code == 0, result.output
    assert starred(result.stdout) == [["0.01", "1.5000", "2/2", "succeeded", first[1]]]
    elements = Elements(page.read_text())
    assert "★ 1.5000" in elements.texts("td") and elements.texts("h1") == ["sweep s"]
    assert "2 succeeded, 1 failed" in page.read_text()
    assert f"The metrics of {first[2]} are not here" in result.stderr
    assert f"The metrics of {first[2]} are not here" in page.read_text()

    (found,) = json.loads(call("sweep", "--store", store, "-o", "json").stdout)
    assert found["best"] == [first[1]] and found["submission"].startswith("s-")
    assert [(job["job"], job["loss"]) for job in found["jobs"]] == [
        (first[1], 1.5),
        (first[0], 2.5),
        (first[2], None),
    ]
    assert [job["held_out_loss"] for job in found["jobs"]] == [1.5, 2.5, None]
    assert found["jobs"][0]["training_loss"] == 1.25


def test_names_and_submissions(write_run: Write, store: str) -> None:
    old = submit(write_run({"name": "s", "sweep": {"seed": [1, 2]}}), store)
    file = write_run(
        {"name": "plain"},
        {"name": "s", "sweep": {"seed": [3, 4]}},
        {"name": "t", "sweep": {"max_steps": [2, 3]}},
    )
    new = submit(file, store)
    shown = call("sweep", "--store", store).stdout
    assert all(name in shown for name in new[1:]) and new[0] not in shown
    assert "sweep s: 2 jobs" in shown and "sweep t: 2 jobs" in shown
    (older,) = re.findall(r"older sweeps \(submission, jobs\): s \((s-\w+), 2\)", shown)
    assert all(name in call("sweep", older, "--store", store).stdout for name in old)
    named = call("sweep", "s", "--store", store).stdout
    assert new[1] in named and old[0] not in named and "older" not in named
    refused = call("sweep", "q", "--store", store)
    assert refused.exit_code == 2
    said = " ".join(refused.stderr.split())
    assert "no sweep or submission 'q'; sweeps, the newest first: t (s-" in said


def test_a_store_without_sweeps_says_so(write_run: Write, store: str) -> None:
    submit(write_run({"name": "plain"}), store)
    result = call("sweep", "--store", store)
    assert result.exit_code == 0 and result.stdout.startswith("no sweeps in sqlite:///")
    assert json.loads(call("sweep", "--store", store, "-o", "json").stdout) == []
    result = call("sweep", "s", "--store", store)
    assert result.exit_code == 2 and "has no sweep 's', nor any other" in result.stderr


def test_what_cannot_be_read_or_written(write_run: Write, tmp_path: Path, store: str) -> None:
    (job,) = submit(write_run({"name": "s", "sweep": {"learning_rate": [0.5]}}), store)
    work(store, {"0.5": 1.5})
    (metrics,) = Path(tmp_path / "home").glob("**/metrics.jsonl")
    metrics.write_bytes(b"{oops\n" + metrics.read_bytes())
    result = call("sweep", "--store", store)
    assert result.exit_code == 0 and f"metrics of {job} cannot be read" in result.stderr
    assert "by training loss of the last step" in result.stdout
    result = call("sweep", "--store", store, "--html", tmp_path)
    assert result.exit_code == 2 and "cannot be written" in result.stderr
    result = call("sweep", "--store", store, "-o", "yaml")
    assert result.exit_code == 2
