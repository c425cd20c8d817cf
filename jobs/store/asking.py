"""What a user asks of a job that is in the store: cancel it, pause it, let it go on."""

from __future__ import annotations

from sqlalchemy import Connection, update

from lorafusion.errors import StoreError
from lorafusion.jobs.store.changes import change_state, note
from lorafusion.jobs.store.claims import expire
from lorafusion.jobs.store.database import Database
from lorafusion.jobs.store.reading import find, one
from lorafusion.jobs.store.records import JobRecord
from lorafusion.jobs.store.states import State, Wanted
from lorafusion.jobs.store.tables import jobs

__all__ = ["ask"]

_HELD = (State.PLANNED, State.RUNNING)
_AT_ONCE = {
    Wanted.CANCEL: State.CANCELLED,
    Wanted.PAUSE: State.PAUSED,
    Wanted.RUN: State.PENDING,
}
_DONE = {Wanted.CANCEL: "cancelled", Wanted.PAUSE: "paused", Wanted.RUN: "resumed"}


def ask(database: Database, name: str, wanted: Wanted) -> JobRecord:
    """Ask something of a job, by its id or name; returns how it stands then.

    A job that no worker has is changed at once. One that a worker has is asked of the worker, which
    sees to it within seconds.

    Raises:
        StoreError: There is no such job, or it has ended.
    """
    identity = find(database, name).id
    with database.write() as connection:
        now = database.now(connection)
        expire(connection, now)
        job = one(connection, identity)
        assert job is not None, "jobs are never removed"
        if job.ended:
            raise StoreError(
                f"job {job.id} has ended ({job.state}) and cannot be {_DONE[wanted]}; submit it "
                "again."
            )
        _ask(connection, job, wanted, now)
        job = one(connection, identity)
    assert job is not None
    return job


def _ask(connection: Connection, job: JobRecord, wanted: Wanted, now: float) -> None:
    if job.wanted is not wanted:
        connection.execute(update(jobs).where(jobs.c.id == job.id).values(wanted=wanted.value))
        note(connection, job.id, now, f"asked to be {_DONE[wanted]}")
    if job.state in _HELD or job.state is _AT_ONCE[wanted]:
        return
    if wanted is Wanted.RUN and job.state is not State.PAUSED:
        return  # it waits already
    change_state(connection, job, _AT_ONCE[wanted], now, reason=_reason(wanted))


def _reason(wanted: Wanted) -> str | None:
    return None if wanted is Wanted.RUN else "asked for"
