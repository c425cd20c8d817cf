"""Keep a base loaded, and train the jobs that the store has for it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lorafusion.files import home
from lorafusion.jobs.schema import RunSpec
from lorafusion.jobs.store.claims import Worker
from lorafusion.jobs.store.database import Database
from lorafusion.launch.local import LocalOptions, finish_local
from lorafusion.launch.served_file import read_worker
from lorafusion.launch.stopping import StopRequest
from lorafusion.launch.store_worker import StoreWorker, WorkerOptions, new_worker
from lorafusion.launch.worker import Rank
from lorafusion.training.events import Events
from lorafusion.training.result import RunResult
from lorafusion.training.team import Team

__all__ = ["ServeOptions", "serve", "serve_stages", "worker_folder"]


@dataclass(frozen=True)
class ServeOptions:
    """What is served, and how.

    Attributes:
        url: The store.
        run: The base and the run's settings, without jobs: see
            :func:`lorafusion.launch.served_file.served_run`.
        worker: How it works.
        stop: Ends it; a signal does too.
    """

    url: str
    run: RunSpec
    worker: WorkerOptions
    stop: StopRequest = field(default_factory=StopRequest)


def worker_folder(name: str) -> Path:
    """Where a server keeps what is not of one job."""
    return home() / "workers" / name


def serve(options: ServeOptions, events: Events) -> RunResult:
    """Train jobs of the store until a signal, or until none is left where that is asked for.

    Jobs that are running then are saved and given back.

    Raises:
        StoreError: The store cannot be opened or written.
        ModelError: The base cannot be used.
    """
    worker = new_worker(options.run)
    with _working(worker, options, events) as told:
        local = LocalOptions(
            worker_folder(worker.id), stop=options.stop, trace="off", arrivals=told
        )
        return finish_local(options.run, local, told)


def serve_stages(rank: Rank, team: Team, url: str, events: Events) -> RunResult:
    """:func:`serve` on the first of several ranks; the others follow as in any run.

    Where one of them is lost the jobs are given back before this one ends, and the next start takes
    them again.
    """
    from lorafusion.launch.lead import lead_run

    options = ServeOptions(url, rank.spec, read_worker(rank.options.file), rank.stop)
    with _working(new_worker(rank.spec), options, events) as told:
        return lead_run(rank, team, told, arrivals=told)


@contextmanager
def _working(worker: Worker, options: ServeOptions, events: Events) -> Generator[StoreWorker]:
    database = Database(options.url)
    try:
        with StoreWorker(database, worker, options.worker, options.stop, events) as told:
            yield told
    finally:
        database.close()
