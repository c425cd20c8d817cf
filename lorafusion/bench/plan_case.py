"""A planner case with what its file notes: bounds, and what LoRAFusion's planner reached."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lorafusion.errors import PlanError
from lorafusion.planner.bounds import lower_bound_places
from lorafusion.planner.case import Case
from lorafusion.planner.links import make_links

__all__ = ["CaseFile", "Reached", "allowed_places"]

SPARE = 1.2
"""A run that has this many times the load of its longest job can hide every wait behind it."""


@dataclass(frozen=True, slots=True)
class Reached:
    """What a planner made of a case.

    Attributes:
        places: Microbatches and no-ops.
        noops: No-ops.
        bubble: Share of the time in which stages idle, ramp included, when a forward takes as many
            seconds as it has tokens and a backward twice as many.
    """

    places: int
    noops: int
    bubble: float


@dataclass(frozen=True, slots=True)
class CaseFile:
    """A case, its bounds, and what the file says of others.

    Attributes:
        case: What is to be planned.
        bound: Places that no plan can go below: the file's ``lower_bound_places``, or ours.
        by_load: Places that all tokens fill.
        by_chain: Places of the longest job alone, its steps one behind the other.
        tight: The file's ``tight_bound_places``; None where it has none.
        reference: LoRAFusion's modes, by name; none where the file has none.
    """

    case: Case
    bound: int
    by_load: int
    by_chain: int
    tight: int | None
    reference: Mapping[str, Reached]

    @classmethod
    def read(cls, path: Path) -> CaseFile:
        """Read a file.

        Raises:
            PlanError: It cannot be read, is no case, or holds a sample above its own capacity; says
                where.
        """
        case = Case.read(path)
        try:
            notes = cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))
            return cls.of(case, notes)
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from error

    @classmethod
    def of(cls, case: Case, notes: Mapping[str, Any]) -> CaseFile:
        """A case with what a file would note of it.

        Raises:
            PlanError: A note is of another form, or a sample is above the capacity.
        """
        queues, limits = case.queues(), case.limits()
        bound = _places(notes, "lower_bound_places")
        return cls(
            case=case,
            bound=bound or lower_bound_places(queues, limits),
            by_load=-(-sum(queue.load for queue in queues) // limits.capacity),
            by_chain=max(links.length for links in make_links(queues, limits)),
            tight=_places(notes, "tight_bound_places"),
            reference=_reference(notes.get("lorafusion_reference", {})),
        )

    @property
    def roomy(self) -> bool:
        """Whether all tokens take at least 1.2 times the places of the longest job."""
        return self.by_load >= SPARE * self.by_chain

    @property
    def aim(self) -> int | None:
        """The most places that the planner is to take; None where no bound is known for it.

        1.02 times the bound where LoRAFusion's figures are known or the case is roomy; elsewhere
        the simple bound can be out of reach, so 1.05 times the tight one.
        """
        if self.reference or self.roomy:
            return allowed_places(self.bound, percent=2)
        return None if self.tight is None else allowed_places(self.tight, percent=5)


def allowed_places(bound: int, *, percent: int) -> int:
    """So many percent above a bound; below 60 places, where that is nothing, one place above it."""
    most = bound * (100 + percent) // 100
    return max(most, bound + 1) if bound < 60 else most


def _places(notes: Mapping[str, Any], name: str) -> int | None:
    value = notes.get(name)
    # type(), not isinstance: JSON's true is an int to Python.
    if value is not None and (type(value) is not int or value < 1):
        raise PlanError(
            f"planner case: {name} is {value!r}; allowed: an integer of at least 1, or no such "
            "field."
        )
    return value


def _reference(value: Any) -> dict[str, Reached]:
    try:
        return {
            str(mode): Reached(
                int(found["places"]), int(found["noops"]), float(found["sim_1f1b_bubble_incl_ramp"])
            )
            for mode, found in value.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise PlanError(
            "planner case: lorafusion_reference is not of the form that it has to be; allowed: "
            "an object of modes, each with places, noops and sim_1f1b_bubble_incl_ramp, or no such "
            "field."
        ) from error
