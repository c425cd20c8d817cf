"""A turn: the places that the replicas run side by side, one each.

Place p of the plan runs on replica p mod D, so that turn k is its places kD to kD + D - 1. With one
replica a turn is a place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from lorafusion.planner.plan import Place, Plan


class Completed(NamedTuple):
    """A step whose last samples are in a turn, and the replica that has the last of all."""

    replica: int
    job: str
    step: int


@dataclass(frozen=True)
class Turn:
    """``places``: one a replica, in order."""

    places: tuple[Place, ...]

    @property
    def completed(self) -> tuple[Completed, ...]:
        """The steps that the places complete, in their order."""
        return tuple(
            Completed(replica, job, step)
            for replica, place in enumerate(self.places)
            if place.kind == "train"
            for job, step in place.completes
        )

    @property
    def evaluates(self) -> bool:
        """Whether there are evals in it and nothing is trained."""
        kinds = {place.kind for place in self.places}
        return "eval" in kinds and "train" not in kinds


def whole_turns(plan: Plan) -> Plan:
    """The plan with as many no-ops behind it as its last turn lacks."""
    lacking = -len(plan.places) % plan.limits.replicas
    return replace(plan, places=(*plan.places, *idle_places(lacking))) if lacking else plan


def idle_places(count: int) -> tuple[Place, ...]:
    """So many no-ops."""
    return (Place("noop"),) * count
