"""Executors that are wrong, on one stage: each must be found out by the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from lorafusion.planner.plan import Place
from lorafusion.training import follow, site
from lorafusion.training.executor import Executor
from lorafusion.training.revision import Revision, Track

Steps = Sequence[tuple[str, int]]


def plant(fault: str) -> None:
    """Let this process be wrong in this way."""
    if fault == "completes_early":
        follow.Track = EarlyTrack
    elif fault:
        site.Executor = EXECUTORS[fault]


class EarlyTrack(Track):
    """Takes each step for complete one of its places too early."""

    def add(self, revision: Revision) -> None:
        if revision.plan is not None:
            places = list(revision.plan.places)
            for at in reversed(range(len(places))):
                for mark in places[at].completes if places[at].kind == "train" else ():
                    self._move(places, at, mark)
            revision = replace(revision, plan=replace(revision.plan, places=tuple(places)))
        super().add(revision)

    @staticmethod
    def _move(places: list[Place], at: int, mark: tuple[str, int]) -> None:
        for before in reversed(range(at)):
            if any((each.job, each.step) == mark for each in places[before].segments):
                kept = tuple(other for other in places[at].completes if other != mark)
                places[at] = replace(places[at], completes=kept)
                marks = (*places[before].completes, mark)
                places[before] = replace(places[before], completes=marks)
                return


class _Alone(Executor):
    """Steps by itself; the verdicts come too late."""

    def _step(self, position: int, steps: Steps) -> None:
        whole = torch.ones((), dtype=torch.float64)
        super()._apply(position, steps, whole.expand(len(steps)))

    def _apply(self, position: int, due: Steps, verdicts: torch.Tensor) -> None:
        return


class OwnCount(_Alone):
    """Steps once it has run as many samples forward as the batch has, as LoRAFusion does."""

    def forward(self, place: Place, upcoming: Any) -> None:
        position = self.position
        super().forward(place, upcoming)
        if place.kind == "train":
            for job, _ in place.completes:
                shard = self._residents[job]
                if shard.gradients._sum is None:
                    shard.gradients.collect()
                shard.complete(self._zero())
            self._step(position, place.completes)

    def _complete(self, place: Place, squares: torch.Tensor) -> torch.Tensor:
        return squares


class NoVerdict(_Alone):
    """Steps right after its own backward."""

    def _complete(self, place: Place, squares: torch.Tensor) -> torch.Tensor:
        squares = super()._complete(place, squares)
        self._step(self.position, place.completes)
        return squares


class LateVerdict(Executor):
    """Steps one place too late."""

    _late: tuple[int, Steps, torch.Tensor] | None = None

    def _apply(self, position: int, due: Steps, verdicts: torch.Tensor) -> None:
        late, self._late = self._late, (position, due, verdicts)
        if late is not None:
            super()._apply(*late)


EXECUTORS = {"own_count": OwnCount, "no_verdict": NoVerdict, "late_verdict": LateVerdict}
FAULTS = (*EXECUTORS, "completes_early")
