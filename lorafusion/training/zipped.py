"""The windows of replicas that train jobs of their own: planned one by one, run side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from typing import Self

from lorafusion.planner.plan import Limits, Plan
from lorafusion.planner.schedule import Policy
from lorafusion.training.job import TrainingJob
from lorafusion.training.turn import idle_places
from lorafusion.training.windows import Windows


class JobsAt(Mapping[str, TrainingJob]):
    """Those of the jobs whose home is a replica, as they are at any time."""

    def __init__(
        self, jobs: Mapping[str, TrainingJob], homes: Mapping[str, int], replica: int
    ) -> None:
        self._jobs = jobs
        self._is_here: Callable[[str], bool] = lambda name: homes.get(name) == replica

    def __getitem__(self, name: str) -> TrainingJob:
        if not self._is_here(name):
            raise KeyError(name)
        return self._jobs[name]

    def __iter__(self) -> Iterator[str]:
        return filter(self._is_here, self._jobs)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class ZippedWindows:
    """As :class:`lorafusion.training.windows.Windows`: turn k is each replica's own place k.

    A job's steps are S places apart in its own replica's plan, and so S·D in all.
    """

    def __init__(
        self,
        jobs: Mapping[str, TrainingJob],
        limits: Limits,
        homes: Mapping[str, int],
        policy: Policy = "makespan",
    ) -> None:
        """Nothing is planned yet; ``homes``: job -> replica."""
        self._limits = limits
        self._homes = homes
        alone = replace(limits, replicas=1)
        self._each = [
            Windows(JobsAt(jobs, homes, replica), alone, policy)
            for replica in range(limits.replicas)
        ]
        self._open = ExitStack()

    def __enter__(self) -> Self:
        for windows in self._each:
            self._open.enter_context(windows)
        return self

    def __exit__(self, *error: object) -> None:
        """Plan no more."""
        self._open.close()

    def add(self, job: TrainingJob) -> None:
        """Plan the job too, from the next plan on."""
        self._each[self._homes[job.name]].add(job)

    def cut(self, place: int) -> None:
        """Run the plans only up to ``place``, a turn's first."""
        for windows in self._each:
            windows.cut(place // self._limits.replicas)

    def lower(self, capacity: int) -> None:
        """Plan with less from the next plan on."""
        self._limits = replace(self._limits, capacity=capacity)
        for windows in self._each:
            windows.lower(capacity)

    def next_plan(self) -> Plan | None:
        """The plans of all replicas, behind the ones before; None where nothing is left to plan.

        Raises:
            PlanError: None can be made.
        """
        plans = [windows.next_plan() for windows in self._each]
        turns = max((len(plan.places) for plan in plans if plan is not None), default=0)
        if not turns:
            return None
        columns = [
            windows.stretch(plan, turns) for windows, plan in zip(self._each, plans, strict=True)
        ]
        alone = tuple(name for plan in plans if plan is not None for name in plan.alone)
        places = chain.from_iterable(zip(*(column.places for column in columns), strict=True))
        return Plan(self._limits, tuple(places), alone)

    def idle(self, plan: Plan) -> None:
        """Places without samples that were put behind the plan before."""
        turns = len(plan.places) // self._limits.replicas
        for windows in self._each:
            windows.idle(Plan(windows.limits, idle_places(turns)))
