"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Submissions, workers, jobs, events."""
    op.create_table(
        "submissions",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("key", sa.String(200), unique=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("file", sa.Text, nullable=False),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("group", sa.String(64), nullable=False),
        sa.Column("base", sa.Text, nullable=False),
        sa.Column("started_at", sa.Float, nullable=False),
        sa.Column("seen_at", sa.Float, nullable=False),
        sa.Column("ended_at", sa.Float),
    )
    op.create_table(
        "jobs",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(80), nullable=False, unique=True),
        sa.Column("submission", sa.String(32), sa.ForeignKey("submissions.id"), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("group", sa.String(64), nullable=False),
        sa.Column("base", sa.Text, nullable=False),
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("folder", sa.Text, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("wanted", sa.String(16), nullable=False),
        sa.Column("worker", sa.String(64), sa.ForeignKey("workers.id")),
        sa.Column("claim", sa.Integer, nullable=False),
        sa.Column("lease_until", sa.Float),
        sa.Column("steps", sa.Integer, nullable=False),
        sa.Column("total_steps", sa.Integer, nullable=False),
        sa.Column("loss", sa.Float),
        sa.Column("submitted_at", sa.Float, nullable=False),
        sa.Column("started_at", sa.Float),
        sa.Column("ended_at", sa.Float),
        sa.Column("changed_at", sa.Float, nullable=False),
    )
    op.create_index("jobs_by_state", "jobs", ["state", "group", "priority", "seq"])
    op.create_index("jobs_by_name", "jobs", ["name"])
    op.create_index("jobs_by_worker", "jobs", ["worker"])
    op.create_table(
        "events",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("job", sa.String(80), sa.ForeignKey("jobs.id"), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
    )
    op.create_index("events_by_job", "events", ["job", "seq"])
