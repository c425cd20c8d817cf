"""Between the store and a run: takes jobs from the one into the other, and tells how they fare.

The store is spoken to by a thread of its own, so that training never waits for a disk or a server,
and leases are renewed while a microbatch runs or a base is loaded.
"""

from __future__ import annotations

import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from lorafusion.data.dataset import DatasetReport
from lorafusion.errors import FolderInUseError, LostClaimError, OutputError, StoreError
from lorafusion.jobs.confine import check_inside
from lorafusion.jobs.schema import JobSpec, RunSpec
from lorafusion.jobs.store.claims import LEASE_S, Claims, Progress, Worker
from lorafusion.jobs.store.database import Database
from lorafusion.jobs.store.records import JobRecord
from lorafusion.jobs.store.states import State, Wanted
from lorafusion.jobs.store.submitting import group_of
from lorafusion.launch.stopping import StopRequest
from lorafusion.training.arrivals import Arrival
from lorafusion.training.events import Events, Relay
from lorafusion.training.folders import claim_folder
from lorafusion.training.job import StepResult
from lorafusion.training.result import JobResult

__all__ = ["StoreWorker", "WorkerOptions", "new_worker"]

_CANCELLED, _PAUSED, _LOST = "cancelled on request", "paused on request", "lost"
_REASONS: dict[Wanted | None, str] = {Wanted.CANCEL: _CANCELLED, Wanted.PAUSE: _PAUSED}
_FARTHEST = 6
"""Priorities beyond it change the order in which jobs are taken, and their share no more."""
_RENEWALS = 6
"""Of a lease, at least: some may be late."""


@dataclass(frozen=True)
class WorkerOptions:
    """How a worker works.

    Attributes:
        residents: Most jobs at a time.
        save_every: Steps between checkpoints of a job that does not say.
        until_idle: End when no job is left, instead of waiting for more.
        poll_s: Seconds between two looks at the store.
        lease_s: See :class:`Claims`.
        workspace: Folder that jobs may not read or write outside of; None: no limit.
        fixed: The run has its jobs, under their own names: all that wait are claimed at the start,
            and none after that.
    """

    residents: int = 50
    save_every: int = 25
    until_idle: bool = False
    poll_s: float = 0.5
    lease_s: float = LEASE_S
    workspace: Path | None = None
    fixed: bool = False


@dataclass
class _Held:
    """A job that this worker has claimed, and its name in the run."""

    record: JobRecord
    name: str
    lock: ExitStack = field(default_factory=ExitStack)
    """Of its folder: on this machine it holds even where a lease does not."""
    total_steps: int = 0


def new_worker(run: RunSpec) -> Worker:
    """This process, under a name that no worker ever had."""
    host = socket.gethostname()[:32]
    name = f"{host}-{os.getpid()}-{secrets.token_hex(4)}"
    return Worker(name, host, os.getpid(), group_of(run), run.base_model)


class StoreWorker(Relay):
    """Gives a run its arrivals, and is told of it. Use it in a ``with`` block around the run."""

    def __init__(
        self,
        database: Database,
        worker: Worker,
        options: WorkerOptions,
        stop: StopRequest,
        inner: Events,
    ) -> None:
        """``stop``: through it jobs are cancelled and paused. ``inner`` is told everything too."""
        super().__init__(inner)
        self._database = database
        self._claims = Claims(database, worker, lease_s=options.lease_s)
        self._options = options
        self._stop = stop
        self._held: dict[str, _Held] = {}
        self._claimed: queue.SimpleQueue[_Held] = queue.SimpleQueue()
        self._locked: list[_Held] = []
        self._said: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._progress: dict[str, Progress] = {}
        self._mutex = threading.Lock()
        self._room = options.residents
        self._idle = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="store", daemon=True)

    def __enter__(self) -> Self:
        """Enter the store, and begin to claim.

        Raises:
            StoreError: It cannot be written.
        """
        self._claims.enter()
        if self._options.fixed:
            self._claim()
            self._room = 0
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """Say what is left to say, and give back the jobs that have not ended."""
        self._closing.set()
        self._thread.join()
        with suppress(StoreError):  # the leases end by themselves
            self._flush()
            self._claims.leave()
        for held in self._held.values():
            held.lock.close()

    # --- arrivals, on the training thread

    def take(self) -> list[Arrival]:
        """Jobs that are claimed, and whose folders nobody holds."""
        come, self._locked = self._locked, []
        with suppress(queue.Empty):
            while True:
                come.append(self._claimed.get_nowait())
        return [arrival for held in come if (arrival := self._arrive(held)) is not None]

    @property
    def open(self) -> bool:
        """Whether a job may still come."""
        return not (self._options.until_idle and self._idle and not self._held)

    def _arrive(self, held: _Held) -> Arrival | None:
        record, name = held.record, held.name
        reason = self._stop.job_reason(name)
        if reason is not None:  # asked for before it came
            self.ended(JobResult(name, "paused", reason=reason))
            return None
        try:
            spec = JobSpec.model_validate_json(record.spec)
            if self._options.workspace is not None:
                check_inside(spec, Path(record.folder), self._options.workspace)
            held.lock.enter_context(claim_folder(Path(record.folder)))
        except FolderInUseError:  # by a worker whose lease ended, and which is still there
            self._locked.append(held)
            return None
        except (OutputError, ValueError) as error:
            self.ended(JobResult(name, "failed", reason=str(error)))
            return None
        changed: dict[str, Any] = {"name": name, "output_dir": record.folder}
        if spec.save_every is None:
            changed["save_every"] = self._options.save_every
        weight = 2.0 ** max(-_FARTHEST, min(_FARTHEST, record.priority))
        return Arrival(spec.model_copy(update=changed), Path(record.folder), weight)

    # --- events, on the training thread

    def ready(self, name: str, report: DatasetReport, *, done: int, total_steps: int) -> None:
        """It runs."""
        held = self._held[name]
        held.total_steps = total_steps
        self._set_progress(held.record.id, Progress(done, total_steps, None))
        self._say(lambda: self._claims.move(held.record.id, State.RUNNING))
        super().ready(name, report, done=done, total_steps=total_steps)

    def step(self, name: str, result: StepResult, *, tokens_per_s: float) -> None:
        """How far it is; the store hears of it with the next look."""
        loss = None if result.skipped else result.loss
        held = self._held[name]
        self._set_progress(held.record.id, Progress(result.step, held.total_steps, loss))
        super().step(name, result, tokens_per_s=tokens_per_s)

    def evaluated(self, name: str, step: int, loss: float) -> None:
        """Passed on, and written down."""
        job, text = self._held[name].record.id, f"held-out loss {loss:.4f} after step {step}"
        self._say(lambda: self._claims.note(job, text))
        super().evaluated(name, step, loss)

    def ended(self, result: JobResult) -> None:
        """It is free again, and what came of it is in its folder."""
        held = self._held.pop(result.name)
        held.lock.close()
        state = _state(result)
        if state is not None:
            job, reason = held.record.id, result.reason
            self._say(lambda: self._claims.move(job, state, reason=reason))
        self._say(self._make_room)
        super().ended(result)

    # --- the store's thread

    def _work(self) -> None:
        renewed = 0.0
        while not self._closing.wait(self._options.poll_s):
            try:
                self._flush()
                now = time.monotonic()
                if now - renewed > self._options.lease_s / _RENEWALS:
                    self._hear(self._claims.renew())
                    renewed = now
                self._claim()
            except StoreError as error:
                self._inner.note(f"{error}; trying again")

    def _flush(self) -> None:
        """Say what is waiting to be said; what cannot be said now is said the next time."""
        with self._mutex:
            progress, self._progress = self._progress, {}
        if progress:
            self._claims.progress(progress)
        with suppress(queue.Empty):
            while True:
                say = self._said.get_nowait()
                try:
                    say()
                except LostClaimError:
                    continue
                except StoreError:
                    self._said.put(say)
                    raise

    def _hear(self, wanted: Mapping[str, Wanted]) -> None:
        for held in list(self._held.values()):
            wish = wanted.get(held.record.id)
            if wish is Wanted.RUN:
                self._stop.forget_job(held.name)  # what was wanted before may be taken back
            else:
                self._stop.ask_job(held.name, _REASONS.get(wish, _LOST))

    def _claim(self) -> None:
        if self._stop.reason() or not self._room:
            return
        self._idle = False  # until it is known that nothing waits
        found = self._claims.claim(self._room)
        self._room -= len(found)
        for held in (_Held(record, self._name_of(record)) for record in found):
            self._held[held.name] = held
            self._claimed.put(held)
        self._idle = not found

    def _name_of(self, record: JobRecord) -> str:
        """One that a job never has again: stages may not have let it go when it comes back."""
        if self._options.fixed:
            return record.name
        return record.id if record.claim == 1 else f"{record.id}.{record.claim}"

    def _make_room(self) -> None:
        self._room += not self._options.fixed

    def _set_progress(self, name: str, progress: Progress) -> None:
        with self._mutex:
            self._progress[name] = progress

    def _say(self, what: Callable[[], Any]) -> None:
        self._said.put(what)


def _state(result: JobResult) -> State | None:
    """What the store is to hold; None: the worker still has it, or has it no more."""
    if result.state == "succeeded":
        return State.SUCCEEDED
    if result.state == "failed":
        return State.FAILED
    return {_CANCELLED: State.CANCELLED, _PAUSED: State.PAUSED}.get(result.reason or "")
