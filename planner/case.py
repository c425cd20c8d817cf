"""Planner cases: lengths of several jobs in a JSON file, to plan, measure and compare.

A file holds an object with ``name``, ``stages``, ``capacity_tokens`` and ``jobs``, a list of
``{"name", "global_batch_size", "lengths"}``: the first ``global_batch_size`` lengths are the job's
first step, and so on; the last step may be smaller. Further fields are notes and are not read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from lorafusion.errors import PlanError
from lorafusion.planner import fields
from lorafusion.planner.plan import Limits, Plan
from lorafusion.planner.queue import Batch, JobQueue

__all__ = ["Case", "CaseJob", "Row", "to_rows"]

Row = list[int]
"""Index of the job, step from 0, index of the sample within the job, tokens."""

_CASE_FIELDS = ("name", "stages", "capacity_tokens", "jobs")
_JOB_FIELDS = ("name", "global_batch_size", "lengths")
_WHAT = "planner case"


@dataclass(frozen=True, slots=True)
class CaseJob:
    """A job of a case.

    Attributes:
        name: The job.
        global_batch_size: Samples of a step.
        lengths: Tokens of each sample, in the order in which the job takes them.
    """

    name: str
    global_batch_size: int
    lengths: tuple[int, ...]

    def queue(self) -> JobQueue:
        """All its steps, from 1; a sample is named by its position in ``lengths``."""
        size = self.global_batch_size
        starts = range(0, len(self.lengths), size)
        return JobQueue(
            self.name,
            tuple(
                Batch(step, tuple(range(start, start + len(lengths))), lengths)
                for step, start in enumerate(starts, 1)
                if (lengths := self.lengths[start : start + size])
            ),
        )


@dataclass(frozen=True, slots=True)
class Case:
    """What is to be planned, and for what.

    Attributes:
        name: What the case is.
        stages: Pipeline stages S.
        capacity_tokens: The most tokens of a place.
        jobs: The jobs, no two of one name.
    """

    name: str
    stages: int
    capacity_tokens: int
    jobs: tuple[CaseJob, ...]

    @classmethod
    def read(cls, path: Path) -> Case:
        """Read a file.

        Raises:
            PlanError: It cannot be read, or is no case: says which field, and what it may hold.
        """
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"{path}: cannot be read as a planner case: {error}") from error
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> Case:
        """Read the text of a file.

        Raises:
            PlanError: ``text`` is no case: says which field, and what it may hold.
        """
        found = _object(fields.parse(text, "a planner case"), "the whole", _CASE_FIELDS)
        jobs = [_job(value, f"jobs[{i}]") for i, value in enumerate(_items(found, "jobs", ""))]
        seen: set[str] = set()
        for index, job in enumerate(jobs):
            if job.name in seen:
                where = f"{_WHAT}: jobs[{index}].name"
                raise fields.wrong(where, job.name, "a name that no other job has")
            seen.add(job.name)
        return cls(
            name=fields.text(found["name"], f"{_WHAT}: name"),
            stages=_size(found, "stages", ""),
            capacity_tokens=_size(found, "capacity_tokens", ""),
            jobs=tuple(jobs),
        )

    def to_json(self) -> str:
        """One line of JSON that :meth:`from_json` reads."""
        jobs = [
            {"name": job.name, "global_batch_size": job.global_batch_size, "lengths": job.lengths}
            for job in self.jobs
        ]
        document = {"name": self.name, "stages": self.stages}
        document |= {"capacity_tokens": self.capacity_tokens, "jobs": jobs}
        return json.dumps(document, ensure_ascii=False, separators=(",", ":"))

    def queues(self) -> tuple[JobQueue, ...]:
        """One queue a job, with all of its steps."""
        return tuple(job.queue() for job in self.jobs)

    def limits(self) -> Limits:
        """Loads are tokens."""
        return Limits(capacity=self.capacity_tokens, stages=self.stages)


def to_rows(plan: Plan, case: Case) -> list[list[Row]]:
    """The samples of each place of ``plan``, in order; ``[]`` for a no-op.

    Raises:
        PlanError: The plan holds a job that the case does not.
    """
    index = {job.name: number for number, job in enumerate(case.jobs)}
    for number, place in enumerate(plan.places):
        for segment in place.segments:
            if segment.job not in index:
                raise PlanError(
                    f"place {number} holds job {segment.job!r}, and the case {case.name!r} has no "
                    "such job. Take a plan that was made of this case."
                )
    return [
        [
            [index[segment.job], segment.step - 1, sample, tokens]
            for segment in place.segments
            for sample, tokens in zip(segment.samples, segment.lengths, strict=True)
        ]
        for place in plan.places
    ]


def _job(value: object, where: str) -> CaseJob:
    found = _object(value, where, _JOB_FIELDS)
    _items(found, "lengths", f"{where}.")
    return CaseJob(
        name=fields.text(found["name"], f"{_WHAT}: {where}.name"),
        global_batch_size=_size(found, "global_batch_size", f"{where}."),
        lengths=fields.integers(found["lengths"], f"{_WHAT}: {where}.lengths", least=1),
    )


def _object(value: object, where: str, names: tuple[str, ...]) -> dict[str, object]:
    """An object with ``names``; further fields are notes."""
    found = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    if not set(names) <= set(found):
        allowed = f"an object with the fields {', '.join(names)}"
        raise fields.wrong(f"{_WHAT}: {where}", cast("object", value), allowed)
    return found


def _items(found: dict[str, object], name: str, where: str) -> list[object]:
    items = fields.items(found[name], f"{_WHAT}: {where}{name}")
    if not items:
        raise fields.wrong(f"{_WHAT}: {where}{name}", items, "a list that is not empty")
    return items


def _size(found: dict[str, object], name: str, where: str) -> int:
    return fields.integer(found[name], f"{_WHAT}: {where}{name}", least=1)
