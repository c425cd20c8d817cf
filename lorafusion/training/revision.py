"""The plan as all ranks follow it: revisions from rank 0, each from a certain place on.

Places are counted over the whole run. A revision takes over at its ``start``, whether that is the
end of the plan before it or cuts it short, so that windows join and jobs leave without a flush. A
rank never knows more than the revisions it has acknowledged, and rank 0 runs no place of one before
all have: the places behind ``start`` are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lorafusion.planner.plan import Place, Plan
from lorafusion.training.team import Message
from lorafusion.training.turn import Turn


@dataclass(frozen=True)
class Leave:
    """A job that is in no place any more.

    Attributes:
        job: Its name.
        step: The last step that counts; it leaves a stage once that is done there.
        save: Whether a checkpoint of that step is wanted.
    """

    job: str
    step: int
    save: bool


@dataclass(frozen=True)
class Revision:
    """From place ``start`` on, this plan.

    Attributes:
        start: Number of the place, over the whole run from 0.
        plan: None leaves the plan as it is.
        leaves: Jobs that leave before ``start``.
        last: The run ends with this plan.
    """

    start: int
    plan: Plan | None = None
    leaves: tuple[Leave, ...] = ()
    last: bool = False

    def message(self) -> Message:
        """For :meth:`lorafusion.training.team.Post.publish`."""
        return {
            "kind": "revision",
            "start": self.start,
            "plan": None if self.plan is None else self.plan.to_json(),
            "leaves": [asdict(leave) for leave in self.leaves],
            "last": self.last,
        }

    @classmethod
    def read(cls, message: Message) -> Revision:
        """The inverse of :meth:`message`."""
        plan: str | None = message["plan"]
        leaves: Sequence[dict[str, Any]] = message["leaves"]
        return cls(
            start=message["start"],
            plan=None if plan is None else Plan.from_json(plan),
            leaves=tuple(Leave(**leave) for leave in leaves),
            last=message["last"],
        )


class Track:
    """The places that are known to one rank, and what is to be done on the way."""

    def __init__(self, replicas: int = 1) -> None:
        """``replicas``: places of a turn; revisions start and end with whole turns."""
        self._replicas = replicas
        self._places: dict[int, Place] = {}
        self._leaves: list[tuple[int, Leave]] = []
        self._end: int | None = None
        self.known = 0
        """One past the last place that is known."""

    def add(self, revision: Revision) -> None:
        """Follow ``revision`` from its start on."""
        self._leaves += [(revision.start, leave) for leave in revision.leaves]
        if revision.plan is not None:
            assert revision.start <= self.known, "a gap between two plans"
            assert len(revision.plan.places) % self._replicas == 0, "a plan ends within a turn"
            for place in range(revision.start, self.known):
                del self._places[place]
            self._places |= dict(enumerate(revision.plan.places, revision.start))
            self.known = revision.start + len(revision.plan.places)
        if revision.last:
            self._end = self.known

    def leaves(self, place: int) -> list[Leave]:
        """Who leaves before ``place`` is run, and has not been asked for yet."""
        due = [leave for start, leave in self._leaves if start <= place]
        self._leaves = [entry for entry in self._leaves if entry[0] > place]
        return due

    def peek(self, place: int) -> Turn | None:
        """The turn that begins with ``place``, if it is known."""
        return self._turn(place) if place in self._places else None

    def take(self, place: int, more: Callable[[], Revision]) -> Turn | None:
        """A turn to be run now; None at the end of the run.

        Args:
            place: Number of its first place.
            more: Waits for the next revision; asked as long as the place is not known.
        """
        while place not in self._places:
            if place == self._end:
                return None
            self.add(more())
        turn = self._turn(place)
        for number in range(place, place + self._replicas):
            del self._places[number]
        return turn

    def _turn(self, place: int) -> Turn:
        return Turn(tuple(self._places[place + replica] for replica in range(self._replicas)))
