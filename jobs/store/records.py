"""Rows of the store as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from lorafusion.jobs.store.states import ENDED, State, Wanted

__all__ = ["EventRecord", "JobRecord", "WorkerRecord"]


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as the store has it; times are seconds since 1970.

    Attributes:
        seq: Grows with each job that is submitted.
        id: What commands call it.
        submission: The jobs that were submitted together have the same.
        name: As in its file.
        group: Jobs of one group may share a loaded base.
        base: The base model.
        run: The run's settings that count for the result, as JSON.
        spec: The job, as JSON.
        folder: Of its checkpoints, metrics and adapter.
        priority: The higher goes first.
        state: Where it stands.
        reason: Why it stands there.
        wanted: What its user wants.
        worker: Who has it.
        claim: Number of times that a worker took it.
        lease_until: Until when it is the worker's.
        steps: Optimizer steps done.
        total_steps: Of the whole job; 0 as long as that is not known.
        loss: Training loss of the last step.
        submitted_at: When it came.
        started_at: When it was first trained.
        ended_at: When it ended.
        changed_at: When its state last changed.
    """

    seq: int
    id: str
    submission: str
    name: str
    group: str
    base: str
    run: str
    spec: str
    folder: str
    priority: int
    state: State
    reason: str | None
    wanted: Wanted
    worker: str | None
    claim: int
    lease_until: float | None
    steps: int
    total_steps: int
    loss: float | None
    submitted_at: float
    started_at: float | None
    ended_at: float | None
    changed_at: float

    @classmethod
    def of(cls, row: Mapping[Any, Any]) -> Self:
        """From a row of the table."""
        values: dict[str, Any] = {field.name: row[field.name] for field in fields(cls)}
        values |= {"state": State(row["state"]), "wanted": Wanted(row["wanted"])}
        return cls(**values)

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self.state in ENDED


@dataclass(frozen=True, slots=True)
class EventRecord:
    """Something that happened to a job.

    Attributes:
        seq: Grows with each event of any job.
        job: Its id.
        at: When.
        kind: ``state``, or ``note``.
        text: What.
    """

    seq: int
    job: str
    at: float
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """A process, or a set of them, that has a base loaded.

    Attributes:
        id: Its own.
        host: The machine.
        pid: Of the process that talks to the store.
        group: The jobs that it takes.
        base: What it has loaded.
        started_at: When it began.
        seen_at: When it last said that it is there.
        ended_at: When it ended in order.
    """

    id: str
    host: str
    pid: int
    group: str
    base: str
    started_at: float
    seen_at: float
    ended_at: float | None
