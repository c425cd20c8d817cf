"""Executors that are wrong, on one stage: each must be found out by the comparison."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from lorafusion.planner.plan import Place
from lorafusion.training import follow, site
from lorafusion.training.executor import Executor
from lorafusion.training.revision import Revision, Track
from lorafusion.training.turn import Turn


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

    def _step(self, position: int, turn: Turn) -> None:
        whole = torch.ones((), dtype=torch.float64)
        super()._apply(position, turn, whole.expand(len(turn.completed)))

    def _apply(self, position: int, turn: Turn, verdicts: torch.Tensor) -> None:
        return


class OwnCount(_Alone):
    """Steps once it has run as many samples forward as the batch has, as LoRAFusion does."""

    def forward(self, turn: Turn, upcoming: Any) -> None:
        position = self.position
        super().forward(turn, upcoming)
        for _, job, _ in turn.completed:
            shard = self._residents[job]
            if shard.gradients._sum is None:
                shard.gradients.collect()
            shard.add_up(self._team.peers)
            shard.complete(self._zero())
        self._step(position, turn)

    def _complete(self, entry: Any, squares: torch.Tensor) -> torch.Tensor:
        return squares


class NoVerdict(_Alone):
    """Steps right after its own backward."""

    def _complete(self, entry: Any, squares: torch.Tensor) -> torch.Tensor:
        squares = super()._complete(entry, squares)
        self._step(self.position, entry.turn)
        return squares


class LateVerdict(Executor):
    """Steps one place too late."""

    _late: tuple[int, Turn, torch.Tensor] | None = None

    def _apply(self, position: int, turn: Turn, verdicts: torch.Tensor) -> None:
        late, self._late = self._late, (position, turn, verdicts)
        if late is not None:
            super()._apply(*late)


class OwnGradient(Executor):
    """Steps by its own replica's samples alone; the messages are the same."""

    def _add_up(self, job: str, step: int) -> None:
        total = self._residents[job].gradients.finish

        def own(add_up: Any) -> torch.Tensor:
            return total(lambda flat: add_up(flat.clone()))

        self._residents[job].gradients.finish = own
        super()._add_up(job, step)
        self._residents[job].gradients.finish = total


EXECUTORS = {"own_count": OwnCount, "no_verdict": NoVerdict, "late_verdict": LateVerdict}
FAULTS = (*EXECUTORS, "completes_early")
EXECUTORS["own_gradient"] = OwnGradient
