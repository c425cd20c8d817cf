"""The one place where a job's state is changed, and what is written down of it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, insert, update

from lorafusion.jobs.store.records import JobRecord
from lorafusion.jobs.store.states import ENDED, FOLLOWS, State
from lorafusion.jobs.store.tables import events, jobs

__all__ = ["change_state", "note"]

_LONGEST = 20_000
"""Characters of a reason or note: a traceback, not a file."""


def change_state(
    connection: Connection, job: JobRecord, state: State, at: float, **values: Any
) -> bool:
    """Change a job's state if it is still as ``job`` says; returns whether it was.

    Args:
        connection: Of a transaction.
        job: As it was read.
        state: The new one, which may follow.
        at: Now.
        values: Other columns that change with it, ``reason`` among them.
    """
    assert state in FOLLOWS[job.state], f"{job.state} is not followed by {state}"
    reason = values.setdefault("reason", None)
    values["reason"] = reason = None if reason is None else reason[:_LONGEST]
    if state is State.RUNNING and job.started_at is None:
        values["started_at"] = at
    if state in ENDED:
        values["ended_at"] = at
    unchanged = (
        (jobs.c.id == job.id) & (jobs.c.state == job.state.value) & (jobs.c.claim == job.claim)
    )
    changed = connection.execute(
        update(jobs).where(unchanged).values(state=state.value, changed_at=at, **values)
    )
    if changed.rowcount != 1:
        return False
    said = state.value if reason is None else f"{state.value}: {reason}"
    _write(connection, job.id, at, "state", said)
    return True


def note(connection: Connection, job: str, at: float, text: str) -> None:
    """Something that its user should know of a job."""
    _write(connection, job, at, "note", text[:_LONGEST])


def _write(connection: Connection, job: str, at: float, kind: str, text: str) -> None:
    connection.execute(insert(events).values(job=job, at=at, kind=kind, text=text))
