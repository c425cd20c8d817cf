"""A server with a real base: how soon a job joins those that train, and what share it gets."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafusion.errors import BenchError
from lorafusion.jobs.loading import load_run_file
from lorafusion.jobs.store.asking import ask
from lorafusion.jobs.store.database import Database
from lorafusion.jobs.store.reading import events_of, find
from lorafusion.jobs.store.records import JobRecord
from lorafusion.jobs.store.states import State, Wanted
from lorafusion.jobs.store.submitting import Submission, submit

__all__ = ["Served", "measure_joins", "measure_share"]

LONG = 10_000
_JOINS = 3
_BESIDE = 2
_PATIENCE_S = 1800.0
_LOOK_S = 0.05
_WORDS = "the cat sat on a mat and saw one dog run far from home with two red balls".split()


@dataclass
class Served:
    """A base and a store, and servers for them.

    Attributes:
        base: The model.
        folder: Of the stores and results.
        dtype: Number format.
    """

    base: Path
    folder: Path
    dtype: str = "float32"

    @contextmanager
    def server(self, name: str) -> Generator[Database]:
        """A server on a new store."""
        url = f"sqlite:///{self.folder / name}.db"
        command = ["-m", "lorafusion", "serve", "--base", str(self.base), "--dtype", self.dtype]
        log = (self.folder / f"{name}.log").open("w")
        database = Database(url)
        process = subprocess.Popen(
            [sys.executable, *command, "--store", url],
            env={**os.environ, "LORAFUSION_HOME": str(self.folder / "home")},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield database
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
            log.close()
            database.close()

    def submit(self, database: Database, name: str, steps: int) -> JobRecord:
        """A job of one short sample a step."""
        data = self.folder / f"{name}.jsonl"
        rng = random.Random(name)
        rows = (" ".join(rng.choices(_WORDS, k=24)) for _ in range(200))
        data.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
        file = self.folder / f"{name}.yaml"
        job = {"name": name, "dataset": {"path": str(data)}, "max_steps": steps}
        job |= {"global_batch_size": 1, "adapter": {"r": 8}}
        file.write_text(
            json.dumps({"base_model": str(self.base), "dtype": self.dtype, "jobs": [job]})
        )
        spec = load_run_file(file)
        return submit(database, Submission(spec, file.name, self.folder / "jobs"))[0]


def measure_joins(served: Served) -> dict[str, Any]:
    """Seconds from when a job is stored until it is in the plan and trains."""
    seconds: list[float] = []
    with served.server("joins") as database:
        for number in range(_BESIDE):
            long = served.submit(database, f"long{number}", LONG)
            _until(database, [long], lambda job: job.steps > 2)
        for number in range(_JOINS):
            job = served.submit(database, f"joins{number}", LONG)
            _until(database, [job], lambda job: job.state is State.RUNNING)
            begun = _at(database, job, "running")
            _until(database, [job], lambda job: job.steps >= 1)
            seconds.append(begun - job.submitted_at)
            ask(database, job.id, Wanted.CANCEL)
            _until(database, [job], lambda job: job.ended)
    return {"beside": _BESIDE, "seconds": seconds}


def measure_share(served: Served, *, steps: int) -> dict[str, Any]:
    """Seconds of a short job from its first step to its last, alone and beside a long one."""
    with served.server("alone") as database:
        alone = _took(database, served.submit(database, "short", steps))
    with served.server("beside") as database:
        long = served.submit(database, "long", LONG)
        _until(database, [long], lambda job: job.steps > 2)
        beside = _took(database, served.submit(database, "short", steps))
    return {"steps": steps, "long_steps": LONG, "alone_s": alone, "beside_s": beside}


def _took(database: Database, job: JobRecord) -> float:
    _until(database, [job], lambda job: job.ended)
    return _at(database, job, "succeeded") - _at(database, job, "running")


def _at(database: Database, job: JobRecord, said: str) -> float:
    return next(event.at for event in events_of(database, job.id) if event.text == said)


def _until(
    database: Database, jobs: Sequence[JobRecord], holds: Callable[[JobRecord], bool]
) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not all(holds(found := find(database, job.id)) for job in jobs):
        if found.state is State.FAILED or time.monotonic() > deadline:
            raise BenchError(f"job {found.id} is {found.state}: {found.reason}")
        time.sleep(_LOOK_S)
