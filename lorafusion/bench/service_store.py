"""A store of many jobs with a server at work: what looking and submitting take."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from lorafusion.errors import BenchError
from lorafusion.jobs.loading import load_run_file
from lorafusion.jobs.store.claims import Claims, Progress
from lorafusion.jobs.store.database import Database
from lorafusion.jobs.store.reading import list_jobs, list_workers
from lorafusion.jobs.store.states import State
from lorafusion.jobs.store.submitting import Submission, submit
from lorafusion.launch.store_worker import new_worker

__all__ = ["measure_store"]

NEWEST = 20
_FILE = 10
"""Jobs of a file."""
_LOOK_S = 0.5
"""Between two writes of the server, as `serve` does them."""


def measure_store(folder: Path, *, jobs: int, residents: int, repeats: int) -> dict[str, Any]:
    """Seconds of each, median and most.

    Args:
        folder: An empty one.
        jobs: In the store.
        residents: Of them, that a server has and reports of.
        repeats: Times that each is done.
    """
    file = _job_file(folder)
    url = f"sqlite:///{folder / 'store.db'}"
    database = Database(url)
    what = Submission(load_run_file(file), file.name, folder / "jobs")
    for _ in range(jobs // _FILE):
        submit(database, what)

    def look(newest: int | None) -> None:
        list_jobs(database, newest=newest)
        list_workers(database)

    with _served(url, what, residents):
        found = {
            "status": _timed(lambda: look(NEWEST), repeats),
            "list": _timed(lambda: look(None), repeats),
            "submit": _timed(lambda: submit(database, what), repeats),
            "command status": _timed(lambda: _command(url, "status"), repeats),
            "command submit": _timed(lambda: _command(url, "submit", str(file)), repeats),
            "command --version": _timed(lambda: _command(url, "--version"), repeats),
        }
    database.close()
    return {"jobs": jobs, "residents": residents, "file": _FILE, "repeats": repeats, "took": found}


def _job_file(folder: Path) -> Path:
    (folder / "rows.jsonl").write_text('{"text": "a"}\n')
    one = "  - {{name: job{}, dataset: {{path: {}}}}}\n"
    rows = "".join(one.format(number, folder / "rows.jsonl") for number in range(_FILE))
    file = folder / "jobs.yaml"
    file.write_text(f"base_model: org/base\njobs:\n{rows}")
    return file


@contextmanager
def _served(url: str, what: Submission, residents: int) -> Generator[None]:
    """A server's writes, from a connection of its own."""
    database = Database(url)
    claims = Claims(database, new_worker(what.spec))
    claims.enter()
    held = [job.id for job in claims.claim(residents)]
    for job in held:
        claims.move(job, State.RUNNING)
    over = threading.Event()

    def work() -> None:
        steps = 0
        while not over.wait(_LOOK_S):
            steps += 1
            claims.progress(dict.fromkeys(held, Progress(steps, 10_000, 1.0)))
            claims.renew()

    thread = threading.Thread(target=work, name="server")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        claims.leave()
        database.close()


def _timed(act: Callable[[], object], repeats: int) -> dict[str, float]:
    took: list[float] = []
    for _ in range(repeats):
        started = time.perf_counter()
        act()
        took.append(time.perf_counter() - started)
    return {"median": median(took), "most": max(took)}


def _command(url: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lorafusion", *arguments],
        env={**os.environ, "LORAFUSION_STORE": url},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchError(f"lorafusion {' '.join(arguments)} ended with {done.stderr}")
