"""What is left in the store of a run's folder when another run begins there."""

from __future__ import annotations

from sqlalchemy import select

from lorafusion.jobs.store.changes import change_state
from lorafusion.jobs.store.database import Database
from lorafusion.jobs.store.records import JobRecord
from lorafusion.jobs.store.states import ENDED, State
from lorafusion.jobs.store.tables import jobs

__all__ = ["supersede"]


def supersede(database: Database) -> None:
    """End every job that has not: for a store that the caller alone may write.

    Raises:
        StoreError: It cannot be written.
    """
    ended = [state.value for state in ENDED]
    with database.write() as connection:
        now = database.now(connection)
        rows = connection.execute(select(jobs).where(jobs.c.state.not_in(ended))).mappings().all()
        for job in map(JobRecord.of, rows):
            reason = "a later run of this folder goes on with it"
            change_state(
                connection, job, State.CANCELLED, now,
                reason=reason, worker=None, lease_until=None,
            )  # fmt: skip
