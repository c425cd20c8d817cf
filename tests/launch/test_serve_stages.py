"""A server whose base is cut into two stages."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.launch.service import PATIENCE_S, Job, Service, all_are, assert_same

pytestmark = pytest.mark.multiproc


def ranks_of(pid: int) -> list[int]:
    """The ranks that a launcher has started, by their number."""
    found: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = [entry[5:] for entry in environment if entry.startswith(b"RANK=")]
        if parent == pid and rank:
            found[int(rank[0])] = int(folder.name)
    return [found[rank] for rank in sorted(found)]


def test_jobs_come_while_it_serves_and_a_lost_stage_costs_none(
    service: Service, jobs: list[Job]
) -> None:
    *first, last = [{**job, "save_every": 2} for job in jobs]
    long = {**last, "name": "long", "max_steps": 100_000}
    server = service.serve("--stages", 2, "--hang-timeout", 5)
    service.submit(first)
    found = service.until(all_are("succeeded"))
    assert_same(service, found, first)
    service.submit([long])
    service.until(lambda found: found["long"]["steps"] > 2)
    service.submit([last])
    service.until(lambda found: found[last["name"]]["steps"] >= 2)
    _, second = ranks_of(server.pid)
    os.kill(second, signal.SIGKILL)
    found = service.until(lambda found: found[last["name"]]["state"] == "succeeded")
    assert_same(service, found, [last])
    assert "recovering: its worker ended" in service.run("logs", "long")
    steps = found["long"]["steps"]
    service.until(lambda found: found["long"]["steps"] > steps)
    server.send_signal(signal.SIGTERM)
    assert server.wait(PATIENCE_S) == 128 + signal.SIGTERM, server.communicate()[0]
    assert service.status()["long"]["state"] == "recovering"


def test_it_waits_without_jobs_for_longer_than_a_hang(service: Service, jobs: list[Job]) -> None:
    server = service.serve("--stages", 2, "--hang-timeout", 5, "--max-restarts", 0)
    service.submit(jobs[:1])
    service.until(all_are("succeeded"))
    with pytest.raises(Exception, match="timed out"):
        server.wait(12)
    service.submit(jobs[1:2])
    service.until(all_are("succeeded"))
    server.send_signal(signal.SIGINT)
    assert server.wait(PATIENCE_S) == 128 + signal.SIGINT


def test_more_stages_than_layers(service: Service) -> None:
    done = service.serve("--stages", 7, "--until-idle")
    output, _ = done.communicate(timeout=PATIENCE_S)
    assert done.returncode == 2
    assert "7 stages" in output and "Traceback" not in output


def test_the_store_s_password_is_not_written_down(service: Service, jobs: list[Job]) -> None:
    store = f"sqlite:///{service.folder}/home/store.db?timeout=77"
    service.submit(jobs[:1], "--store", store)
    done = service.serve("--stages", 2, "--until-idle", "--store", store)
    assert done.wait(PATIENCE_S) == 0
    assert service.status()[jobs[0]["name"]]["state"] == "succeeded"
    (folder,) = (service.folder / "home" / "workers").iterdir()
    assert json.loads((folder / "served.json").read_text())["worker"]["until_idle"]
    for path in folder.rglob("*"):
        assert path.is_dir() or b"timeout=77" not in path.read_bytes()
