"""Sweeps among submitted jobs: from the store, and from the metrics in the jobs' folders."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafusion.errors import OutputError, StoreError
from lorafusion.jobs.ranking import Ranking, Variant, rankings
from lorafusion.jobs.store.database import Database
from lorafusion.jobs.store.reading import list_jobs
from lorafusion.jobs.store.records import JobRecord
from lorafusion.training.metrics import METRICS_FILE, read_metrics
from lorafusion.training.records import EvalRecord, parse_record

__all__ = ["SubmittedSweep", "find_sweeps", "list_sweeps", "rank"]

_NAMED = 8
"""Sweeps that an error names."""


@dataclass(frozen=True, slots=True)
class SubmittedSweep:
    """The jobs of a sweep that was submitted.

    Attributes:
        name: Of the sweep.
        submission: What it was submitted in.
        jobs: In the order of their file.
        choices: Of each: field -> value.
    """

    name: str
    submission: str
    jobs: tuple[JobRecord, ...]
    choices: tuple[Mapping[str, Any], ...]


def list_sweeps(database: Database) -> list[SubmittedSweep]:
    """All sweeps of the store, in the order in which they came."""
    found: dict[tuple[str, str], list[tuple[JobRecord, Mapping[str, Any]]]] = {}
    for job in list_jobs(database):
        mark = json.loads(job.spec).get("sweep")
        if mark:
            found.setdefault((job.submission, mark["name"]), []).append((job, mark["choice"]))
    return [
        SubmittedSweep(name, submission, *map(tuple, zip(*entries, strict=True)))  # pyright: ignore[reportArgumentType]
        for (submission, name), entries in found.items()
    ]


def find_sweeps(database: Database, name: str) -> list[SubmittedSweep]:
    """The sweeps of a submission; or the newest sweep of a name.

    Raises:
        StoreError: There is none; it says which there are.
    """
    sweeps = list_sweeps(database)
    together = [sweep for sweep in sweeps if sweep.submission == name]
    newest = [sweep for sweep in sweeps if sweep.name == name][-1:]
    if together or newest:
        return together or newest
    if not sweeps:
        raise StoreError(
            f"the store {database.place} has no sweep {name!r}, nor any other: a job with `sweep` "
            "in a file that is submitted makes one."
        )
    told = [f"{sweep.name} ({sweep.submission})" for sweep in sweeps[: -_NAMED - 1 : -1]]
    more = f" and {len(sweeps) - _NAMED:,} older" if len(sweeps) > _NAMED else ""
    raise StoreError(
        f"the store {database.place} has no sweep or submission {name!r}; sweeps, the newest "
        f"first: {', '.join(told)}{more}."
    )


def rank(sweep: SubmittedSweep) -> tuple[Ranking, list[str]]:
    """Its jobs by loss as they stand now, and what of their metrics could not be read.

    Jobs go by their ids, as in all commands.
    """
    notes: list[str] = []
    (made,) = rankings(_variants(sweep, notes))
    return made, notes


def _variants(sweep: SubmittedSweep, notes: list[str]) -> Iterator[Variant]:
    for job, choice in zip(sweep.jobs, sweep.choices, strict=True):
        yield Variant(
            job=job.id,
            sweep=sweep.name,
            choice=choice,
            state=job.state.value,
            steps=job.steps,
            total_steps=job.total_steps,
            held_out=_held_out(job, notes),
            training=job.loss,
        )


def _held_out(job: JobRecord, notes: list[str]) -> float | None:
    """The newest held-out loss after training began; None where there is none."""
    folder = Path(job.folder)
    if job.steps and not (folder / METRICS_FILE).exists():
        notes.append(f"The metrics of {job.id} are not here: {folder / METRICS_FILE}")
    try:
        records: Sequence[Any] = [parse_record(job.id, line) for line in read_metrics(folder)]
    except (OutputError, OSError, ValueError, TypeError, LookupError) as error:
        notes.append(f"The metrics of {job.id} cannot be read: {error}")
        return None
    losses = [r.loss for r in records if isinstance(r, EvalRecord) and r.step > 0]
    return losses[-1] if losses else None
