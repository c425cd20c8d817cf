"""Runs over several stages and replicas in processes, and what their ranks said."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Self

from tests.training.planted import Fault
from tests.training.runs import make_spec

ROOT = Path(__file__).parents[2]
# Tokens of a sample; a job file's jobs must allow no more than the capacity.
LONGEST = 96
# Of each of the fixture's two jobs.
TWO_STEPS = 6
PROGRAM = Path(__file__).with_name("stage_program.py")


@dataclass
class Case:
    """A run. ``stop_after`` and the like: see ``stage_program.py``."""

    output: Path
    stages: int
    faults: Sequence[Fault] = ()
    resume: bool = False
    window: int = 0
    stop_after: int | None = None
    pause_after: Mapping[str, int] = field(default_factory=dict[str, int])
    plans: int | None = None
    timeout_s: float = 200
    trace: bool | None = False
    coming: Mapping[str, Sequence[tuple[int, Mapping[str, Any]]]] = field(
        default_factory=dict[str, Any]
    )
    replicas: int = 1
    mode: str = "together"
    ranks: int = 0
    elastic: str = "refuse"


@dataclass(frozen=True)
class Ended:
    """A run's end: exit codes of the ranks, and what rank 0 showed."""

    codes: list[int | None]
    out: str
    err: str

    @property
    def code(self) -> int | None:
        """Rank 0's."""
        return self.codes[0]

    @property
    def jobs(self) -> dict[str, dict[str, Any]]:
        """Their results, by name."""
        return {job["name"]: job for job in json.loads(self.out)["jobs"]}


class Stages:
    """The process that forks the ranks. To be used in a ``with`` block."""

    def __init__(self, folder: Path, base: Path) -> None:
        """``folder``: for what the ranks say."""
        self._folder = folder
        self._base = base
        self._numbers = count()

    def __enter__(self) -> Self:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM)],
            cwd=ROOT,
            env={**environment, "LORAFUSION_HOME": str(self._folder / "home")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.communicate(timeout=60)
        assert self._process.returncode == 0

    def run(self, case: Case, jobs: Sequence[Mapping[str, Any]], **settings: Any) -> Ended:
        """Train ``jobs``; no rank hangs. ``settings`` go to the run."""
        folder = self._folder / f"case-{next(self._numbers)}"
        folder.mkdir()
        spec = make_spec(self._base, jobs, **settings)
        file = folder / "run.yaml"
        file.write_text(spec.model_dump_json(exclude_unset=True))
        request = {
            **asdict(case),
            "faults": case.faults,
            "output": str(case.output),
            "folder": str(folder),
            "file": str(file),
            "port": _free_port(),
        }
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        codes = json.loads(self._process.stdout.readline())
        ended = Ended(codes, (folder / "out-0").read_text(), (folder / "err-0").read_text())
        assert None not in codes, f"ranks hang: {codes}\n{ended.err}"
        return ended


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]
