"""What the places of a turn brought, and the verdicts on the steps that it completes.

The first stage of each replica knows its own place's. They add up what they know, and each judges:
all come to the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from lorafusion.planner.plan import Place
from lorafusion.training.optimizer import judge
from lorafusion.training.residents import Residents
from lorafusion.training.team import Team
from lorafusion.training.turn import Turn


class Brought(NamedTuple):
    """What a place brought, as float64 tensors.

    Attributes:
        losses: Sum of cross-entropies of each sample, in order.
        failed: 1 for each segment whose job was given up on some stage, else 0.
        squares: Squared gradient norm of each step that it completes.
    """

    losses: torch.Tensor
    failed: torch.Tensor
    squares: torch.Tensor


@dataclass(frozen=True)
class Report:
    """What is known of a place once it is through.

    Attributes:
        place: It.
        losses: See :class:`Brought`, as the two below.
        failed: For each segment.
        squares: For each step that it completes.
        verdicts: On each of these steps, see :mod:`lorafusion.training.optimizer`.
    """

    place: Place
    losses: Sequence[float]
    failed: Sequence[float]
    squares: Sequence[float]
    verdicts: Sequence[float]


class Judge:
    """On a first stage."""

    def __init__(self, residents: Residents, team: Team) -> None:
        """``residents``: the jobs on it."""
        self._residents = residents
        self._team = team
        self._losses: dict[tuple[str, int], torch.Tensor] = defaultdict(self._zero)

    def gather(self, turn: Turn, own: Brought) -> list[Brought]:
        """What each place of the turn brought; ``own``: this replica's."""
        numbers = [
            torch.cat(own) if replica == self._team.replica else self._zero(count)
            for replica, count in enumerate(sum(counts(place)) for place in turn.places)
        ]
        whole = torch.cat(numbers)
        if len(whole):
            self._team.peers.total(whole)
        found: list[Brought] = []
        for place, part in zip(turn.places, whole.split([len(n) for n in numbers]), strict=True):
            found.append(Brought(*part.split(counts(place))))
        return found

    def verdicts(self, turn: Turn, brought: Sequence[Brought]) -> torch.Tensor:
        """On the steps that the turn completes, in order."""
        found: list[torch.Tensor] = []
        for place, of_place in zip(turn.places, brought, strict=True):
            if place.kind == "train":
                self._add_losses(place, of_place)
                found += self._judge(place, of_place.squares)
        return torch.stack(found) if found else self._zero(0)

    def _add_losses(self, place: Place, brought: Brought) -> None:
        samples = [len(segment.samples) for segment in place.segments]
        # A step with a failed part has no finite loss, and is skipped everywhere.
        failed = torch.where(brought.failed > 0, torch.nan, 0.0)
        parts = zip(place.segments, brought.losses.split(samples), failed, strict=True)
        for segment, part, bad in parts:
            self._losses[segment.job, segment.step] += part.sum() + bad

    def _judge(self, place: Place, squares: torch.Tensor) -> list[torch.Tensor]:
        return [
            judge(total, self._losses.pop((job, step)), self._max_norm(job))
            for (job, step), total in zip(place.completes, squares, strict=True)
        ]

    def _max_norm(self, job: str) -> float | None:
        shard = self._residents.get(job)
        return None if shard is None else shard.spec.max_grad_norm

    def _zero(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self._team.device)


def reports(turn: Turn, brought: Sequence[Brought], verdicts: torch.Tensor) -> list[Report]:
    """A report of each place; waits for the device."""
    steps = [steps_of(place) for place in turn.places]
    found: list[Report] = []
    for place, of_place, verdict in zip(turn.places, brought, verdicts.split(steps), strict=True):
        losses, failed, squares = (numbers.tolist() for numbers in of_place)
        found.append(Report(place, losses, failed, squares, verdict.tolist()))
    return found


def counts(place: Place) -> list[int]:
    """How many losses, failed flags and squares a place brings."""
    samples = sum(len(segment.samples) for segment in place.segments)
    return [samples, len(place.segments), steps_of(place)]


def steps_of(place: Place) -> int:
    """Steps that a place completes."""
    return len(place.completes) if place.kind == "train" else 0
