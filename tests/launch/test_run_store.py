"""``train`` keeps a store of its own: other terminals see its jobs and ask things of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.launch.service import PATIENCE_S, Job, Service
from tests.training import runs

pytestmark = pytest.mark.multiproc


def write(service: Service, jobs: list[Job]) -> Path:
    file = service.folder / "jobs.yaml"
    file.write_text(json.dumps(service.spec(jobs) | {"threads": 1}))
    return file


@pytest.mark.parametrize("stages", [1, 2])
def test_jobs_of_a_run_are_seen_and_asked(service: Service, jobs: list[Job], stages: int) -> None:
    short, long, other, _ = jobs
    long = {**long, "name": "long", "max_steps": 100_000}
    other = {**other, "name": "other", "max_steps": 100_000}
    file, output = write(service, [short, long, other]), service.folder / "out"
    run = service.start("train", file, "-o", output, "--stages", stages)
    service_until = lambda holds: service.until(holds, store=output)  # noqa: E731
    while not (output / "store.db").exists():
        assert run.poll() is None, run.communicate()[0]
    service_until(lambda found: found.get("long", {"steps": 0})["steps"] > 2)
    service_until(lambda found: found[short["name"]]["state"] == "succeeded")
    assert "step 3: loss" in service.run("logs", "long", "--store", output)
    service.run("cancel", "long", "--store", output)
    service.run("pause", "other", "--store", output)
    assert run.wait(PATIENCE_S) == 1, run.communicate()[0]  # not all have succeeded
    found = service.status(output)
    assert {name: job["state"] for name, job in found.items()} == {
        short["name"]: "succeeded",
        "long": "cancelled",
        "other": "paused",
    }
    assert found[short["name"]]["folder"] == str(output / short["name"])
    assert service.run("list", "--state", "paused", "-q", "--store", output).split() == [
        found["other"]["id"]
    ]


def test_a_later_run_goes_on_and_says_so(service: Service, jobs: list[Job]) -> None:
    short, other = jobs[:2]
    file, output = write(service, [short]), service.folder / "out"
    service.run("train", file, "-o", output)
    before = service.status(output)[short["name"]]
    service.run("train", file, "-o", output, code=2)  # refused: it holds an earlier run
    assert service.status(output)[short["name"]] == before
    write(service, [short, other])
    service.run("train", file, "-o", output, "--resume")
    found = service.status(output)
    assert {job["state"] for job in found.values()} == {"succeeded"} and len(found) == 2
    assert found[short["name"]]["id"] != before["id"]
    assert service.run("list", "-q", "--store", output).split()[0] == before["id"]


def test_a_run_needs_no_store(service: Service, jobs: list[Job]) -> None:
    """As on a file system that cannot hold a database."""
    file, output = write(service, jobs[:1]), service.folder / "out"
    (output / "store.db").mkdir(parents=True)
    said = service.run("train", file, "-o", output)
    assert "cannot be opened" in said and "cannot reach this run" in said
    alone = service.folder / "alone"
    assert runs.run(alone, service.base, jobs[:1], deterministic=True).succeeded
    runs.assert_same_bytes(output / jobs[0]["name"], alone / jobs[0]["name"])


def test_no_store_is_there(service: Service) -> None:
    nothing = service.folder / "nothing"
    for command in (["status"], ["list"], ["logs", "a"], ["cancel", "a"]):
        service.run(*command, "--store", nothing, code=2)
    assert not nothing.exists()
    service.run("list", "--state", "gone", code=2)
