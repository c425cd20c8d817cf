"""A run of a job file in a store of its own, in the run's folder.

``status``, ``logs``, ``cancel`` and ``pause`` work on it from another terminal as on a server's
jobs: ``lorafusion status --store OUTPUT``.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lorafusion.errors import StoreError
from lorafusion.jobs.schema import RunSpec
from lorafusion.jobs.store.database import FILE, Database
from lorafusion.jobs.store.submitting import Submission, submit
from lorafusion.jobs.store.superseding import supersede
from lorafusion.launch.stopping import StopRequest
from lorafusion.launch.store_worker import StoreWorker, WorkerOptions, new_worker
from lorafusion.training.events import Events, Relay

__all__ = ["RunStore", "StoredRun"]


@dataclass(frozen=True)
class StoredRun:
    """What is run.

    Attributes:
        spec: The jobs.
        file: Where they were read.
        output: Folder of the run.
    """

    spec: RunSpec
    file: Path
    output: Path


class RunStore(Relay):
    """Submits the jobs of a run and works on them. Use it in a ``with`` block around the run."""

    def __init__(self, run: StoredRun, stop: StopRequest, inner: Events) -> None:
        """``stop``: through it jobs are cancelled and paused. ``inner`` is told everything too."""
        super().__init__(inner)
        self._run = run
        self._stop = stop
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._opened.close()

    def begun(self) -> None:
        """The folder is this run's: whatever the store says of an earlier one is over."""
        super().begun()
        try:
            self._inner = self._open()
        except StoreError as error:
            # Training needs no database, and some network file systems can hold none.
            self.note(f"{error}; `lorafusion status`, `cancel` and the like cannot reach this run")

    def _open(self) -> Events:
        run = self._run
        database = Database(f"sqlite:///{(run.output / FILE).absolute()}")
        self._opened.callback(database.close)
        supersede(database)
        submit(database, Submission(run.spec, str(run.file), run.output, by_name=True))
        options = WorkerOptions(residents=len(run.spec.jobs), fixed=True)
        return self._opened.enter_context(
            StoreWorker(database, new_worker(run.spec), options, self._stop, self._inner)
        )
