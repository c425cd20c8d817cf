"""Serve in forks of this process, kill them, and see that nothing is lost.

``python -m tests.launch.chaos_program FOLDER CASE...``: FOLDER/spec.json says what to train. A case
is the name of a crash point, at which a server kills itself, or ``random-SEED``: some servers are
killed at random instants. For each, jobs are submitted to a store of its own and served until they
have ended; what became of them is printed as a line of JSON.

A fork is a process of its own that need not import torch again, so that many can be killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from sqlalchemy import update
from torch.utils.tensorboard import SummaryWriter  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

from lorafusion import files
from lorafusion.jobs.schema import RunSpec
from lorafusion.jobs.store import changes, submitting
from lorafusion.jobs.store.claims import Claims
from lorafusion.jobs.store.database import Database
from lorafusion.jobs.store.reading import events_of, list_jobs
from lorafusion.jobs.store.states import State
from lorafusion.jobs.store.submitting import Submission, submit
from lorafusion.jobs.store.tables import jobs as jobs_table
from lorafusion.launch.serve import ServeOptions, serve
from lorafusion.launch.store_worker import WorkerOptions
from lorafusion.training.course import Course
from lorafusion.training.events import Events
from lorafusion.training.manifest import ManifestWriter
from lorafusion.training.metrics import JobMetrics
from lorafusion.training.output import JobOutput
from lorafusion.training.shard import JobShard
from lorafusion.training.shard_writer import ShardWriter
from lorafusion.training.site import Site

LEASE_S = 60.0
KILLS = 3
"""Of a random case."""
LONGEST_S = 120.0

# Name -> object, attribute, whether it dies before or after that is called, and at which call.
Point = tuple[Any, str, str, int]
POINTS: dict[str, Point] = {
    "before a shard": (ShardWriter, "_write", "before", 2),
    "between shard and manifest": (ManifestWriter, "_write", "before", 2),
    "after a manifest": (ManifestWriter, "_write", "after", 2),
    "before a rename": (files.os, "replace", "before", 5),
    "before old checkpoints go": (ManifestWriter, "_prune", "before", 3),
    "during a window's change": (Course, "_publish", "before", 2),
    "while joining": (Site, "join", "after", 2),
    "after a claim": (Claims, "claim", "after", 1),
    "in the middle of a store write": (changes, "_write", "after", 3),
    "after a step": (JobShard, "apply", "after", 5),
    "after metrics": (JobMetrics, "_write", "after", 4),
    "before an export": (JobOutput, "export", "before", 1),
    "between export and store": (JobOutput, "export", "after", 1),
    "after the store knows": (Claims, "move", "after", 5),
    "during restore": (JobShard, "restore", "before", 1),
}
OF_SUBMITTERS: dict[str, Point] = {
    "in the middle of a submission": (submitting, "_row", "after", 2),
    "after a submission, before it is told": (submitting, "of_submission", "after", 1),
}


def main(folder: Path, cases: list[str]) -> None:
    """One case after the other."""
    torch.set_num_threads(1)
    spec = RunSpec.model_validate_json((folder / "spec.json").read_text())
    for number, case in enumerate(cases):
        place = folder / f"case-{number}"
        place.mkdir()
        sys.stdout.write(json.dumps(run_case(spec, place, case)) + "\n")
        sys.stdout.flush()


def run_case(spec: RunSpec, place: Path, case: str) -> dict[str, Any]:
    """Submit, serve and kill, and serve to the end."""
    os.environ["LORAFUSION_HOME"] = str(place / "home")
    killed = 0
    if case in OF_SUBMITTERS:
        killed += died(lambda: put(spec, place), OF_SUBMITTERS[case])
    assert not died(lambda: put(spec, place))  # what was cut off is done again, with its key
    if case == "during restore":
        killed += died(lambda: work(spec, place), POINTS["after a manifest"])
        let_leases_end(place)
    if case in POINTS:
        killed += died(lambda: work(spec, place), POINTS[case])
    elif case.startswith("random-"):
        rng = random.Random(int(case.removeprefix("random-")))
        for _ in range(KILLS):
            killed += shot(lambda: work(spec, place), rng.uniform(0, 1.5))
            let_leases_end(place)
    let_leases_end(place)
    assert not died(lambda: work(spec, place)), "the last server died"
    return {"case": case, "killed": killed, "jobs": [told(place, job) for job in jobs_of(place)]}


def jobs_of(place: Path) -> list[Any]:
    """As the store has them."""
    with opened(place) as database:
        return list_jobs(database)


def told(place: Path, job: Any) -> dict[str, Any]:
    """What became of a job."""
    with opened(place) as database:
        said = [event.text for event in events_of(database, job.id)]
    return {
        "name": job.name,
        "state": job.state.value,
        "folder": job.folder,
        "claims": job.claim,
        "succeeded": said.count(State.SUCCEEDED.value),
    }


def let_leases_end(place: Path) -> None:
    """As if time had passed: whoever held them is dead."""
    with opened(place) as database, database.write() as connection:
        held = jobs_table.c.lease_until.is_not(None)
        connection.execute(update(jobs_table).where(held).values(lease_until=0.0))


@contextmanager
def opened(place: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{place / 'store.db'}")
    yield database
    database.close()


def put(spec: RunSpec, place: Path) -> None:
    """Submit, under a key."""
    with opened(place) as database:
        submit(database, Submission(spec, "spec.json", place / "jobs", key="once"))


def work(spec: RunSpec, place: Path) -> None:
    """Serve until no job is left."""
    run = spec.model_copy(update={"jobs": ()})
    worker = WorkerOptions(save_every=2, until_idle=True, poll_s=0.02, lease_s=LEASE_S)
    serve(ServeOptions(f"sqlite:///{place / 'store.db'}", run, worker), Events())


def died(act: Callable[[], None], point: Point | None = None) -> bool:
    """Do it in a fork, with a crash point; returns whether it was killed there."""
    child = forked(act, point)
    deadline = time.monotonic() + LONGEST_S
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"no end after {LONGEST_S:g} s")
        time.sleep(0.01)
    return verdict(ended[1])


def shot(act: Callable[[], None], after_s: float) -> bool:
    """Do it in a fork that is killed after so many seconds; whether that was before its end."""
    child = forked(act, None)
    time.sleep(after_s)
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    return verdict(os.waitpid(child, 0)[1])


def verdict(status: int) -> bool:
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), f"ended with {code}"
    return code != 0


def forked(act: Callable[[], None], point: Point | None) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if point is not None:
            plant(*point)
        act()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def plant(owner: Any, name: str, when: str, nth: int) -> None:
    """Let this process die at a call."""
    inner, calls = getattr(owner, name), 0

    def deadly(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        mine = calls == nth
        if mine and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = inner(*arguments, **options)
        if mine:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, deadly)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    os._exit(0)  # taking all modules down takes seconds
