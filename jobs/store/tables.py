"""The tables. A change here needs a migration in ``migrations/versions`` and another ``HEAD``."""

from __future__ import annotations

from sqlalchemy import Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text

__all__ = ["HEAD", "events", "jobs", "metadata", "submissions", "workers"]

HEAD = "0001"
"""The newest migration."""

metadata = MetaData()

submissions = Table(
    "submissions",
    metadata,
    Column("id", String(32), primary_key=True),
    # The submitter's own name for it: one that is sent twice is there once.
    Column("key", String(200), unique=True),
    Column("at", Float, nullable=False),
    Column("file", Text, nullable=False),
)

workers = Table(
    "workers",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("group", String(64), nullable=False),
    Column("base", Text, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("seen_at", Float, nullable=False),
    Column("ended_at", Float),
)

jobs = Table(
    "jobs",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("id", String(80), nullable=False, unique=True),
    Column("submission", String(32), ForeignKey("submissions.id"), nullable=False),
    Column("name", String(64), nullable=False),
    # Jobs of one group may share a base that is loaded: same base, number format, mode.
    Column("group", String(64), nullable=False),
    Column("base", Text, nullable=False),
    Column("run", Text, nullable=False),
    Column("spec", Text, nullable=False),
    Column("folder", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text),
    Column("wanted", String(16), nullable=False),
    Column("worker", String(64), ForeignKey("workers.id")),
    # Grows with each claim: what an older holder says does not count any more.
    Column("claim", Integer, nullable=False),
    Column("lease_until", Float),
    Column("steps", Integer, nullable=False),
    Column("total_steps", Integer, nullable=False),
    Column("loss", Float),
    Column("submitted_at", Float, nullable=False),
    Column("started_at", Float),
    Column("ended_at", Float),
    Column("changed_at", Float, nullable=False),
    Index("jobs_by_state", "state", "group", "priority", "seq"),
    Index("jobs_by_name", "name"),
    Index("jobs_by_worker", "worker"),
)

events = Table(
    "events",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("job", String(80), ForeignKey("jobs.id"), nullable=False),
    Column("at", Float, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("text", Text, nullable=False),
    Index("events_by_job", "job", "seq"),
)
