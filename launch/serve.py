"""Keep a base loaded, and train the jobs that the store has for it."""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass, field
from pathlib import Path

from lorafusion.files import home
from lorafusion.jobs.schema import RunSpec
from lorafusion.jobs.store.claims import Worker
from lorafusion.jobs.store.database import Database
from lorafusion.jobs.store.submitting import group_of
from lorafusion.launch.local import LocalOptions, finish_local
from lorafusion.launch.stopping import StopRequest
from lorafusion.launch.store_worker import StoreWorker, WorkerOptions
from lorafusion.training.events import Events
from lorafusion.training.result import RunResult

__all__ = ["ServeOptions", "new_worker", "serve", "served_run"]


@dataclass(frozen=True)
class ServeOptions:
    """What is served, and how.

    Attributes:
        url: The store.
        run: The base and the run's settings, without jobs: see :func:`served_run`.
        worker: How it works.
        stop: Ends it; a signal does too.
    """

    url: str
    run: RunSpec
    worker: WorkerOptions
    stop: StopRequest = field(default_factory=StopRequest)


def served_run(base_model: str, **settings: object) -> RunSpec:
    """A run that begins without jobs."""
    place = Path(base_model)
    base = str(place.absolute()) if place.exists() else base_model
    return RunSpec.model_construct(base_model=base, jobs=(), **settings)


def new_worker(run: RunSpec) -> Worker:
    """This process, under a name that no other worker has."""
    host = socket.gethostname()
    name = f"{host[:32]}-{os.getpid()}-{secrets.token_hex(4)}"
    return Worker(name, host, os.getpid(), group_of(run), run.base_model)


def serve(options: ServeOptions, events: Events) -> RunResult:
    """Train jobs of the store until a signal, or until none is left where that is asked for.

    Jobs that are running then are saved and given back.

    Raises:
        StoreError: The store cannot be opened or written.
        ModelError: The base cannot be used.
    """
    database = Database(options.url)
    worker = new_worker(options.run)
    with StoreWorker(database, worker, options.worker, options.stop, events) as told:
        local = LocalOptions(
            home() / "workers" / worker.id,
            stop=options.stop,
            trace="off",
            arrivals=told,
        )
        result = finish_local(options.run, local, told)
    database.close()
    return result
