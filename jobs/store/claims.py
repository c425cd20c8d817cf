"""Which worker has which job. A lease that is not renewed ends, and the job is anybody's again.

A claim has a number. What its holder says counts only as long as no other claim came after it, so
that a worker that was stopped for longer than its lease changes nothing when it wakes up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert, select, update

from lorafusion.errors import LostClaimError
from lorafusion.jobs.store.changes import change_state, note
from lorafusion.jobs.store.database import Database
from lorafusion.jobs.store.reading import one
from lorafusion.jobs.store.records import JobRecord
from lorafusion.jobs.store.states import State, Wanted
from lorafusion.jobs.store.tables import jobs, workers

__all__ = ["Claims", "Progress", "Worker", "expire"]

LEASE_S = 30.0
"""How long a job stays with a worker that says nothing; it says so every few seconds."""

_HELD = (State.PLANNED, State.RUNNING)
_WAITING = (State.PENDING, State.RECOVERING)
_LEFT_AS = {
    Wanted.RUN: State.RECOVERING,
    Wanted.PAUSE: State.PAUSED,
    Wanted.CANCEL: State.CANCELLED,
}


@dataclass(frozen=True, slots=True)
class Worker:
    """Who claims.

    Attributes:
        id: No other worker ever has it.
        host: The machine.
        pid: The process.
        group: The jobs that it can train.
        base: What it has loaded.
    """

    id: str
    host: str
    pid: int
    group: str
    base: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is.

    Attributes:
        steps: Optimizer steps done.
        total_steps: Of the whole job.
        loss: Of the last step, if it is finite.
    """

    steps: int
    total_steps: int
    loss: float | None


class Claims:
    """The jobs of one worker. To be used by one thread."""

    def __init__(self, database: Database, worker: Worker, *, lease_s: float = LEASE_S) -> None:
        """Nothing is claimed yet.

        Args:
            database: The store.
            worker: Who claims.
            lease_s: Seconds until a job is given to another, unless :meth:`renew` is called.
        """
        self._database = database
        self._worker = worker
        self._lease_s = lease_s
        self._held: dict[str, int] = {}

    @property
    def held(self) -> frozenset[str]:
        """Ids of the jobs that this worker has."""
        return frozenset(self._held)

    def enter(self) -> None:
        """Say that this worker is there."""
        worker = self._worker
        with self._database.write() as connection:
            now = self._database.now(connection)
            connection.execute(
                insert(workers).values(
                    id=worker.id, host=worker.host, pid=worker.pid, group=worker.group,
                    base=worker.base, started_at=now, seen_at=now,
                )
            )  # fmt: skip

    def claim(self, count: int) -> list[JobRecord]:
        """Take at most so many jobs that wait: those of the highest priority, then the oldest."""
        with self._database.write() as connection:
            now = self._database.now(connection)
            expire(connection, now)
            waiting = (
                select(jobs)
                .where(jobs.c.state.in_([state.value for state in _WAITING]))
                .where(jobs.c.group == self._worker.group)
                .order_by(jobs.c.priority.desc(), jobs.c.seq)
                .limit(count)
                .with_for_update(skip_locked=True)  # SQLite has one writer, and leaves it out
            )
            found = [JobRecord.of(row) for row in connection.execute(waiting).mappings()]
            return [job for job in (self._take(connection, job, now) for job in found) if job]

    def renew(self) -> Mapping[str, Wanted]:
        """Keep all jobs for another lease; returns what is wanted of each that is still here."""
        with self._database.write() as connection:
            now = self._database.now(connection)
            mine = (jobs.c.worker == self._worker.id) & jobs.c.state.in_(
                [state.value for state in _HELD]
            )
            connection.execute(
                update(workers).where(workers.c.id == self._worker.id).values(seen_at=now)
            )
            connection.execute(update(jobs).where(mine).values(lease_until=now + self._lease_s))
            rows = connection.execute(select(jobs.c.id, jobs.c.claim, jobs.c.wanted).where(mine))
            wanted = {
                row.id: Wanted(row.wanted) for row in rows if self._held.get(row.id) == row.claim
            }
            expire(connection, now)
        self._held = {job: claim for job, claim in self._held.items() if job in wanted}
        return wanted

    def move(self, job: str, state: State, *, reason: str | None = None) -> None:
        """Change the state of a job of this worker; in a state that it does not hold it is let go.

        Raises:
            LostClaimError: It is not this worker's any more.
        """
        with self._database.write() as connection:
            now = self._database.now(connection)
            record = self._mine(connection, job)
            values: dict[str, Any] = {"reason": reason}
            if state not in _HELD:
                values |= {"worker": None, "lease_until": None}
            if not change_state(connection, record, state, now, **values):
                raise self._lost(job)
        if state not in _HELD:
            del self._held[job]

    def progress(self, of: Mapping[str, Progress]) -> None:
        """Write how far jobs of this worker are; those that are not its any more are left out."""
        with self._database.write() as connection:
            for job, made in of.items():
                connection.execute(
                    update(jobs)
                    .where((jobs.c.id == job) & (jobs.c.worker == self._worker.id))
                    .values(steps=made.steps, total_steps=made.total_steps, loss=made.loss)
                )

    def note(self, job: str, text: str) -> None:
        """Something that its user should know of a job."""
        with self._database.write() as connection:
            note(connection, job, self._database.now(connection), text)

    def leave(self) -> None:
        """Give back what is still held, and say that this worker is gone."""
        with self._database.write() as connection:
            now = self._database.now(connection)
            for job in self._held:
                record = one(connection, job)
                if record is not None and record.worker == self._worker.id:
                    _give_back(connection, record, now, "its worker ended")
            connection.execute(
                update(workers)
                .where(workers.c.id == self._worker.id)
                .values(seen_at=now, ended_at=now)
            )
        self._held = {}

    def _take(self, connection: Connection, job: JobRecord, now: float) -> JobRecord | None:
        claim = job.claim + 1
        lease = now + self._lease_s
        taken = change_state(
            connection, job, State.PLANNED, now,
            worker=self._worker.id, claim=claim, lease_until=lease,
        )  # fmt: skip
        if not taken:
            return None
        self._held[job.id] = claim
        return one(connection, job.id)

    def _mine(self, connection: Connection, job: str) -> JobRecord:
        record = one(connection, job)
        if record is None or job not in self._held or record.claim != self._held[job]:
            raise self._lost(job)
        return record

    def _lost(self, job: str) -> LostClaimError:
        self._held.pop(job, None)
        return LostClaimError(
            f"job {job} is not this worker's any more: its lease of {self._lease_s:g} s ended "
            "before it was renewed, and another worker may have it."
        )


def expire(connection: Connection, now: float) -> None:
    """Take jobs from workers that have said nothing for a whole lease."""
    over = select(jobs).where(
        jobs.c.state.in_([state.value for state in _HELD]) & (jobs.c.lease_until < now)
    )
    for job in _records(connection.execute(over).mappings()):
        _give_back(connection, job, now, f"worker {job.worker} said nothing for too long")


def _give_back(connection: Connection, job: JobRecord, now: float, reason: str) -> None:
    state = _LEFT_AS[job.wanted]
    if state is not State.RECOVERING:
        reason = "asked for"
    change_state(connection, job, state, now, reason=reason, worker=None, lease_until=None)


def _records(rows: Iterable[Mapping[Any, Any]]) -> list[JobRecord]:
    return [JobRecord.of(row) for row in rows]
