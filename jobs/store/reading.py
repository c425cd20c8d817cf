"""Look into the store. Nothing here waits for a writer."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, select

from lorafusion.errors import StoreError
from lorafusion.jobs.store.database import Database
from lorafusion.jobs.store.records import EventRecord, JobRecord, WorkerRecord
from lorafusion.jobs.store.states import State
from lorafusion.jobs.store.tables import events, jobs, workers

__all__ = ["events_of", "find", "list_jobs", "list_workers", "of_submission", "one"]


def list_jobs(
    database: Database, states: Sequence[State] = (), *, newest: int | None = None
) -> list[JobRecord]:
    """Jobs in the order in which they came; those in some states alone, or the newest alone."""
    query = select(jobs)
    if states:
        query = query.where(jobs.c.state.in_([state.value for state in states]))
    query = query.order_by(jobs.c.seq.desc())
    if newest is not None:
        query = query.limit(newest)
    with database.read() as connection:
        rows = connection.execute(query).mappings().all()
    return [JobRecord.of(row) for row in reversed(rows)]


def find(database: Database, name: str) -> JobRecord:
    """A job by its id; or the newest of a name.

    Raises:
        StoreError: There is none.
    """
    with database.read() as connection:
        found = one(connection, name)
        if found is None:
            query = select(jobs).where(jobs.c.name == name).order_by(jobs.c.seq.desc()).limit(1)
            row = connection.execute(query).mappings().first()
            found = None if row is None else JobRecord.of(row)
    if found is None:
        raise StoreError(
            f"the store {database.place} has no job {name!r}; `lorafusion list` shows all."
        )
    return found


def one(connection: Connection, name: str) -> JobRecord | None:
    """A job by its id."""
    row = connection.execute(select(jobs).where(jobs.c.id == name)).mappings().first()
    return None if row is None else JobRecord.of(row)


def of_submission(connection: Connection, submission: str) -> list[JobRecord]:
    """The jobs that were submitted together, in the order of their file."""
    query = select(jobs).where(jobs.c.submission == submission).order_by(jobs.c.seq)
    return [JobRecord.of(row) for row in connection.execute(query).mappings()]


def events_of(database: Database, job: str, after: int = 0) -> list[EventRecord]:
    """What happened to a job, behind the event of a number."""
    query = (
        select(events).where((events.c.job == job) & (events.c.seq > after)).order_by(events.c.seq)
    )
    with database.read() as connection:
        return [EventRecord(**row) for row in connection.execute(query).mappings()]


def list_workers(database: Database) -> list[WorkerRecord]:
    """All that ever registered and have not ended in order."""
    query = select(workers).where(workers.c.ended_at.is_(None)).order_by(workers.c.started_at)
    with database.read() as connection:
        return [WorkerRecord(**row) for row in connection.execute(query).mappings()]
