"""The job service for real: processes that serve, jobs that come, are asked for, and are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.service import PATIENCE_S, ROOT, Job, Service, all_are, assert_same

pytestmark = pytest.mark.multiproc


def test_jobs_that_were_there_before_any_server(service: Service, jobs: list[Job]) -> None:
    ids = service.submit(jobs)
    assert service.status()["wide"]["state"] == "pending"
    assert "no worker runs" in service.run("status")
    server = service.serve("--until-idle")
    assert server.wait(PATIENCE_S) == 0, server.communicate()[0]
    found = service.status()
    assert [found[job["name"]]["id"] for job in jobs] == ids
    assert {job["state"] for job in found.values()} == {"succeeded"}
    assert all(job["steps"] == job["total_steps"] > 0 for job in found.values())
    assert_same(service, found, jobs)
    log = service.run("logs", "wide")
    for words in ("submitted from", "planned", "running", "step 8: loss", "succeeded"):
        assert words in log


def test_one_comes_and_one_is_cancelled_while_others_train(
    service: Service, jobs: list[Job]
) -> None:
    wide, attention, _, plain = jobs
    long = {**wide, "name": "long", "max_steps": 100_000}
    other = {**plain, "name": "paused", "max_steps": 100_000}
    service.submit([long, other])
    server = service.serve()
    service.until(lambda found: found["long"]["steps"] > 2 and found["paused"]["steps"] > 2)
    service.submit([attention])
    service.until(lambda found: found["attention"]["state"] == "succeeded")
    service.run("pause", "paused")
    service.run("cancel", "long")
    found = service.until(
        lambda found: (found["long"]["state"], found["paused"]["state"]) == ("cancelled", "paused")
    )
    assert not (Path(found["long"]["folder"]) / "adapter").exists() or found["long"]["steps"] > 0
    assert_same(service, found, [attention])
    service.run("resume", "paused")
    steps = found["paused"]["steps"]
    service.until(lambda found: found["paused"]["steps"] > steps)
    server.send_signal(signal.SIGTERM)
    assert server.wait(PATIENCE_S) == 128 + signal.SIGTERM
    assert service.status()["paused"]["state"] == "recovering"


def test_a_killed_server_s_jobs_are_gone_on_with(service: Service, jobs: list[Job]) -> None:
    service.submit([{**job, "save_every": 2} for job in jobs])
    first = service.serve("--lease", 3)
    service.until(lambda found: any(job["steps"] >= 3 for job in found.values()))
    os.killpg(first.pid, signal.SIGKILL)
    second = service.serve("--until-idle", "--lease", 3)
    found = service.until(all_are("succeeded"))
    assert second.wait(PATIENCE_S) == 0
    assert any("recovering: worker" in service.run("logs", name) for name in found)
    assert_same(service, found, [{**job, "save_every": 2} for job in jobs])


def test_a_bad_job_fails_alone(service: Service, jobs: list[Job]) -> None:
    bad = {**jobs[1], "name": "bad", "adapter": {"r": 2, "target_modules": ["no_such"]}}
    service.submit([jobs[0], bad])
    service.serve("--until-idle").wait(PATIENCE_S)
    found = service.status()
    assert (found["wide"]["state"], found["bad"]["state"]) == ("succeeded", "failed")
    assert "no_such" in found["bad"]["reason"]


def test_submit_waits_and_says_how_it_went(service: Service, jobs: list[Job]) -> None:
    service.serve()
    file = service.folder / "jobs.yaml"
    file.write_text(json.dumps(service.spec(jobs[:1])))
    service.run("submit", file, "--wait")
    bad = {**jobs[0], "dataset": {"path": str(service.folder / "nothing.jsonl")}}
    file.write_text(json.dumps(service.spec([bad])))
    service.run("submit", file, "--wait", code=1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cancel", "nobody"], "has no job 'nobody'"),
        (["logs", "nobody"], "has no job 'nobody'"),
        (["status", "--store", "mysql://x"], "Allowed: sqlite:///FILE"),
        (["status", "-o", "xml"], "allowed: table, json"),
        (["serve", "--base", "/no/such/folder"], "/no/such/folder"),
    ],
)
def test_bad_input(service: Service, arguments: list[str], words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lorafusion", *arguments],
        cwd=ROOT, env={**os.environ, "LORAFUSION_HOME": str(service.folder / "home")},
        text=True, capture_output=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert words in done.stderr.replace("\n", " ") and "Traceback" not in done.stderr
