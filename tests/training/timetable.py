"""Arrivals of tests: jobs that come when others have done so many steps, or have ended."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorafusion.jobs.schema import JobSpec
from lorafusion.training.arrivals import Arrival
from lorafusion.training.events import Events
from lorafusion.training.job import StepResult

Job = dict[str, Any]


class Timetable(Events):
    """To be told of the run as well; it ends when all that are listed have come and ended."""

    def __init__(self, folder: Path, jobs: Mapping[str | None, Sequence[tuple[int, Job]]]) -> None:
        """``jobs``: name of a job -> after which of its steps another comes, -1: after its end;
        None: at once."""
        self._folder = folder
        self._waiting = {name: list(entries) for name, entries in jobs.items()}
        self._come = [job for _, job in self._waiting.pop(None, [])]
        self._left = sum(map(len, jobs.values()))
        self.order: list[tuple[str, int]] = []
        self.ended_jobs: list[str] = []
        self.thread = threading.get_ident()

    def take(self) -> list[Arrival]:
        """On rank 0's thread."""
        assert threading.get_ident() == self.thread
        come, self._come = self._come, []
        self._left -= len(come)
        return [Arrival(JobSpec.model_validate(job), self._folder / job["name"]) for job in come]

    @property
    def open(self) -> bool:
        """Whether more come."""
        return self._left > 0

    def step(self, name: str, result: StepResult, *, tokens_per_s: float) -> None:
        """Who comes after it."""
        self.order.append((name, result.step))
        for after, job in self._waiting.get(name, []):
            if after == result.step:
                self._come.append(job)

    def ended(self, result: Any) -> None:
        """Jobs that come after its end."""
        self.ended_jobs.append(result.name)
        self._come += [job for after, job in self._waiting.get(result.name, []) if after < 0]
