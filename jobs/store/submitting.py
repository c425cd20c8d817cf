"""Put the jobs of a file into the store: all of them, or none."""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, insert, select

from lorafusion.errors import StoreError
from lorafusion.jobs.schema import JobSpec, RunSpec
from lorafusion.jobs.store.changes import note
from lorafusion.jobs.store.database import Database
from lorafusion.jobs.store.reading import of_submission
from lorafusion.jobs.store.records import JobRecord
from lorafusion.jobs.store.states import State, Wanted
from lorafusion.jobs.store.tables import jobs, submissions

__all__ = ["GROUPED", "Submission", "group_of", "submit"]

GROUPED = ("base_model", "dtype", "deterministic")
"""Settings of a run that jobs have to share to share a loaded base."""


@dataclass(frozen=True, slots=True)
class Submission:
    """What is submitted.

    Attributes:
        spec: The jobs.
        file: The name of their file, for people.
        root: Folder in which each job gets one of its own.
        priority: Of all of them; the higher goes first.
        key: The submitter's name for it: the same key is taken once. None: none.
        by_name: Folders have the names of the jobs, not their ids.
    """

    spec: RunSpec
    file: str
    root: Path
    priority: int = 0
    key: str | None = None
    by_name: bool = False


def group_of(spec: RunSpec) -> str:
    """A short name of what a worker has to have loaded for these jobs."""
    shared = {name: getattr(spec, name) for name in GROUPED}
    text = json.dumps(shared | {"base_model": _absolute(spec.base_model)}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def submit(database: Database, what: Submission) -> list[JobRecord]:
    """Store the jobs, in one transaction; returns them in the order of the file.

    A submission with a key that the store has is not made again: its jobs are returned.

    Raises:
        StoreError: The store cannot be written, or the key is that of other jobs.
    """
    spec = _rooted(what.spec)
    with database.write() as connection:
        if what.key is not None:
            known = connection.scalar(select(submissions.c.id).where(submissions.c.key == what.key))
            if known is not None:
                return _again(connection, known, what, spec)
        submission, now = f"s-{secrets.token_hex(6)}", database.now(connection)
        connection.execute(
            insert(submissions).values(id=submission, key=what.key, at=now, file=what.file)
        )
        for job in spec.jobs:
            connection.execute(insert(jobs).values(_row(what, spec, job, submission, now)))
        found = of_submission(connection, submission)
        for record in found:
            note(connection, record.id, now, f"submitted from {what.file}")
    return found


def _again(
    connection: Connection, submission: str, what: Submission, spec: RunSpec
) -> list[JobRecord]:
    found = of_submission(connection, submission)
    if [job.spec for job in found] != [_text(job) for job in spec.jobs]:
        raise StoreError(
            f"key {what.key!r} is that of other jobs ({found[0].name}, ...), submitted before. "
            "Choose another key, or none."
        )
    return found


def _row(
    what: Submission, spec: RunSpec, job: JobSpec, submission: str, now: float
) -> dict[str, object]:
    name = f"{job.name}-{secrets.token_hex(4)}"
    folder = job.name if what.by_name else name
    return {
        "id": name,
        "submission": submission,
        "name": job.name,
        "group": group_of(spec),
        "base": spec.base_model,
        "run": spec.model_dump_json(exclude={"jobs"}, exclude_unset=True),
        "spec": _text(job),
        "folder": job.output_dir or str(what.root.absolute() / folder),
        "priority": what.priority,
        "state": State.PENDING.value,
        "wanted": Wanted.RUN.value,
        "claim": 0,
        "steps": 0,
        "total_steps": 0,
        "submitted_at": now,
        "changed_at": now,
    }


def _text(job: JobSpec) -> str:
    # Fields that nobody set stay so: a default gives way where a set value is an error.
    return job.model_dump_json(exclude_unset=True)


def _rooted(spec: RunSpec) -> RunSpec:
    """With paths that mean the same in a worker, which runs in another folder."""
    jobs = tuple(_rooted_job(job) for job in spec.jobs)
    return spec.model_copy(update={"base_model": _absolute(spec.base_model), "jobs": jobs})


def _rooted_job(job: JobSpec) -> JobSpec:
    dataset = job.dataset.model_copy(update={"path": _absolute(job.dataset.path)})
    held_out = job.eval.dataset
    if held_out is not None:
        held_out = held_out.model_copy(update={"path": _absolute(held_out.path)})
    changed: dict[str, object] = {"dataset": dataset}
    if held_out is not None:
        changed["eval"] = job.eval.model_copy(update={"dataset": held_out})
    if job.output_dir is not None:
        changed["output_dir"] = str(Path(job.output_dir).absolute())
    return job.model_copy(update=changed)


def _absolute(path: str) -> str:
    """A local path from the root on; the id of something on the hub as it is."""
    return str(Path(path).absolute()) if Path(path).exists() else path
