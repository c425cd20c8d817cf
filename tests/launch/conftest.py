"""Starts small processes that are the ranks of a run, and stops whatever is left of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.launch.service import Job, Service
from tests.training import runs

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PROGRAM = HERE / "rank_program.py"
# Until a process counts as hanging: starting one takes 10 s and more where others compute too.
PATIENCE_S = 100.0


@dataclass
class Started:
    """A process and what it has printed once it has ended."""

    process: subprocess.Popen[str]
    code: int | None = None
    out: str = ""
    err: str = ""

    def end(self, timeout: float = PATIENCE_S) -> Started:
        """Wait for its end; it hangs if it takes longer."""
        self.out, self.err = self.process.communicate(timeout=timeout)
        self.code = self.process.returncode
        return self


Start = Callable[..., Started]
StartRanks = Callable[..., list[Started]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts Python in a process group of its own: ``start(*arguments, **environment)``."""
    started: list[Started] = []

    def begin(*arguments: object, **environment: object) -> Started:
        clean = {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"}
        settings = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env={**clean, **settings, **{key: str(value) for key, value in environment.items()}},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(Started(process))
        return started[-1]

    yield begin
    for one in started:
        if one.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait()


@pytest.fixture
def start_ranks(start: Start) -> StartRanks:
    """Starts ``count`` ranks of a program by hand, without torchrun."""

    def begin(
        count: int,
        program: Path,
        *arguments: object,
        port: int | None = None,
        each: Sequence[Sequence[object]] = (),
    ) -> list[Started]:
        port = port or free_port()
        return [
            start(
                program,
                *arguments,
                *(each[rank] if each else ()),
                RANK=rank,
                WORLD_SIZE=count,
                MASTER_ADDR="localhost",
                MASTER_PORT=port,
            )
            for rank in range(count)
        ]

    return begin


@pytest.fixture
def job_file(tiny_base: Path, tmp_path: Path) -> Path:
    """A good job file over a base of two layers."""
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(json.dumps({"prompt": f"the {i}", "completion": " fox"}) for i in range(8))
    )
    return write_run(tmp_path / "run.yaml", tiny_base, tmp_path)


def write_run(file: Path, base: Path, folder: Path, **settings: Any) -> Path:
    """Write a job file with one job."""
    job = {"name": "a", "dataset": {"path": str(folder / "rows.jsonl")}, "max_steps": 2}
    run = {"base_model": str(base), "threads": 1, "jobs": [job], **settings}
    file.write_text(json.dumps(run))
    return file


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def wait_until(condition: Callable[[], bool], timeout: float = PATIENCE_S) -> None:
    """Poll; fails after the time."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)


@pytest.fixture
def service(tiny_base: Path, tmp_path: Path) -> Iterator[Service]:
    """A store, and servers that end with the test."""
    running = Service(tmp_path, tiny_base)
    yield running
    running.end()


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    """Four jobs of eight steps."""
    return runs.four_jobs(tmp_path, steps=8)
