"""Jobs that come while a run goes on: loaded beside it, put on all stages, then planned.

A job's data is read on a thread of its own. Its adapter is made between two places, on each stage,
and only when all stages have said that it is there is it handed to the plan, at the next edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from lorafusion.errors import LorafusionError
from lorafusion.jobs.schema import JobSpec
from lorafusion.training.data import JobData
from lorafusion.training.grid import Grid
from lorafusion.training.job import TrainingJob
from lorafusion.training.team import Message

__all__ = ["Arrival", "Arrivals", "Newcomers", "Welcome"]


@dataclass(frozen=True)
class Arrival:
    """A job that is to join.

    Attributes:
        spec: It; its name is that of no other job that has not ended.
        folder: Of its results. What is there is gone on with.
        weight: Its share of the places, against that of others.
    """

    spec: JobSpec
    folder: Path
    weight: float = 1.0


class Arrivals(Protocol):
    """Where jobs come from. For rank 0's thread."""

    def take(self) -> Sequence[Arrival]:
        """Those that have come since the last call; does not wait."""
        ...

    @property
    def open(self) -> bool:
        """Whether more may come."""
        ...


class Welcome(Protocol):
    """What becomes of an arrival on rank 0."""

    def load(self, spec: JobSpec) -> tuple[JobSpec, JobData]:
        """Read its data; on another thread."""
        ...

    def enter(self, arrival: Arrival, data: JobData) -> TrainingJob:
        """Put it on this stage, and tell the others.

        Raises:
            LorafusionError: It cannot be put there; nothing of it is left.
        """
        ...

    def turn_away(self, arrival: Arrival, error: Exception | str) -> None:
        """It has failed before it was anywhere."""
        ...

    def give_up(self, job: TrainingJob, reason: str) -> None:
        """It is on this stage, and another cannot hold it."""
        ...


class Newcomers:
    """Arrivals on their way into the plan."""

    def __init__(self, arrivals: Arrivals, welcome: Welcome, grid: Grid) -> None:
        """``grid``: of all ranks."""
        self._arrivals = arrivals
        self._welcome = welcome
        self._grid = grid
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="arrivals")
        self._loading: list[tuple[Arrival, Future[tuple[JobSpec, JobData]]]] = []
        self._entered: dict[str, TrainingJob] = {}
        self._silent: dict[str, int] = {}

    @property
    def open(self) -> bool:
        """Whether a job may still come out of here."""
        return bool(self._loading or self._entered) or self._arrivals.open

    def take(self) -> list[TrainingJob]:
        """The jobs that are on all stages now; each is given once."""
        for arrival in self._arrivals.take():
            loading = self._loader.submit(self._welcome.load, arrival.spec)
            self._loading.append((arrival, loading))
        waiting, self._loading = self._loading, []
        for arrival, loading in waiting:
            if loading.done():
                self._enter(arrival, loading)
            else:
                self._loading.append((arrival, loading))
        ready = [name for name in self._entered if not self._silent.get(name, 0)]
        return [self._entered.pop(name) for name in ready]

    def hear(self, rank: int, message: Message) -> None:
        """A rank has put jobs on its stage, or says why it cannot."""
        for name in message["jobs"]:
            self._silent[name] -= 1
            reason = message["failed"].get(name)
            job = self._entered.pop(name, None) if reason is not None else None
            if job is not None:
                self._welcome.give_up(job, f"{self._grid.place(rank)}: {reason}")
            if not self._silent[name]:
                del self._silent[name]

    def close(self) -> None:
        """No more are taken; one whose data is being read is waited for, and left out."""
        self._loader.shutdown(cancel_futures=True)

    def _enter(self, arrival: Arrival, loading: Future[tuple[JobSpec, JobData]]) -> None:
        try:
            spec, data = loading.result()
            job = self._welcome.enter(replace(arrival, spec=spec), data)
        except LorafusionError as error:
            self._welcome.turn_away(arrival, error)
            return
        self._entered[job.name] = job
        if self._grid.ranks > 1:
            self._silent[job.name] = self._grid.ranks - 1
