"""The job service in processes of its own: a store in a folder, commands on it, servers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.training import runs

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0

Job = dict[str, Any]


class Service:
    """A store in a folder, commands on it, and servers."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder = folder
        self.base = base
        self._environment = {
            **os.environ,
            "LORAFUSION_HOME": str(folder / "home"),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        }
        self.servers: list[subprocess.Popen[str]] = []

    def run(self, *arguments: object, code: int = 0, patience_s: float = PATIENCE_S) -> str:
        """A command of ``lorafusion``; returns what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "lorafusion", *map(str, arguments)],
            cwd=ROOT, env=self._environment, text=True, capture_output=True, check=False,
            timeout=patience_s,
        )  # fmt: skip
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout

    def serve(self, *options: object) -> subprocess.Popen[str]:
        """Start a server."""
        return self.start("serve", "--base", self.base, "--deterministic", "--threads", 1, *options)

    def start(self, *command: object) -> subprocess.Popen[str]:
        """A command of ``lorafusion`` that goes on; it is killed with the test, with its ranks."""
        server = subprocess.Popen(
            [sys.executable, "-m", "lorafusion", *map(str, command)],
            cwd=ROOT, env=self._environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.servers.append(server)
        return server

    def submit(self, jobs: Sequence[Job], *options: object) -> list[str]:
        """Returns their ids."""
        file = self.folder / "jobs.yaml"
        file.write_text(json.dumps(self.spec(jobs)))
        return json.loads(self.run("submit", file, "--json", *options))

    def spec(self, jobs: Sequence[Job]) -> Job:
        """A job file."""
        return {"base_model": str(self.base), "deterministic": True, "jobs": list(jobs)}

    def status(self, store: Path | None = None) -> dict[str, Job]:
        """Jobs by name, the newest of each."""
        where = [] if store is None else ["--store", store]
        found = json.loads(self.run("status", "--all", "-o", "json", *where))
        return {job["name"]: job for job in found}

    def until(
        self, holds: Callable[[dict[str, Job]], bool], store: Path | None = None
    ) -> dict[str, Job]:
        """Wait for it; returns how the jobs stand then."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds(found := self.status(store)):
            assert time.monotonic() < deadline, f"waited in vain: {found}"
            time.sleep(0.1)
        return found

    def end(self) -> None:
        """Kill what runs."""
        for server in self.servers:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.communicate()


def alone(service: Service, jobs: Sequence[Job]) -> Path:
    """The same jobs, each by itself and undisturbed."""
    for job in jobs:
        folder = service.folder / "alone" / job["name"]
        runs.run(folder, service.base, [job], deterministic=True)
    return service.folder / "alone"


def assert_same(service: Service, found: dict[str, Job], jobs: Sequence[Job]) -> None:
    expected = alone(service, jobs)
    for job in jobs:
        name = job["name"]
        runs.assert_same_bytes(Path(found[name]["folder"]), expected / name / name)
        assert (Path(found[name]["folder"]) / "adapter" / "adapter_config.json").exists()


def all_are(state: str) -> Callable[[dict[str, Job]], bool]:
    return lambda found: {job["state"] for job in found.values()} == {state}
