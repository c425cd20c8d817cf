"""The plan: the ordered microbatches of a window, as plain data that goes to JSON and back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal, cast, get_args

from lorafusion.errors import PlanError
from lorafusion.planner import fields

__all__ = ["FORMAT", "Limits", "Place", "PlaceKind", "Plan", "PlannedSegment", "ReplicaMode"]

FORMAT = 2
"""Version of the JSON form; :meth:`Plan.from_json` refuses any other."""

PlaceKind = Literal["train", "eval", "noop"]

ReplicaMode = Literal["auto", "together", "spread"]
"""Whether all replicas share every job, or each has jobs of its own; auto: what is faster."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a plan is made for.

    Loads are integers in a unit of the caller's choice, such as tokens or predicted microseconds:
    what a place may hold, and what the planner balances.

    Attributes:
        capacity: The most load of a place.
        stages: Pipeline stages S.
        replicas: Replicas D.
        segment_load: Load that each job adds to a place beside that of its samples.
        place_load: Load of a place that holds anything, on top of the capacity: what a microbatch
            takes whatever is in it. It makes few places better than many of the same evenness.
    """

    capacity: int
    stages: int = 1
    replicas: int = 1
    segment_load: int = 0
    place_load: int = 0

    @property
    def distance(self) -> int:
        """Least number of places from the last of step t to the first of step t+1 of a job."""
        return self.stages * self.replicas

    @classmethod
    def from_fields(cls, value: object, where: str) -> Limits:
        """Read what ``dataclasses.asdict`` and JSON made of limits; ``where`` is named in errors.

        Raises:
            PlanError: ``value`` is something else; says which field, and what it may hold.
        """
        least = {"capacity": 1, "stages": 1, "replicas": 1, "segment_load": 0, "place_load": 0}
        found = fields.mapping(value, where, tuple(least))
        return cls(**{n: fields.integer(found[n], f"{where}.{n}", least=least[n]) for n in least})


@dataclass(frozen=True, slots=True)
class PlannedSegment:
    """The samples of one job in one place.

    Attributes:
        job: Name of the job.
        step: In a train place the step they belong to (from 1); in an eval place the step after
            which they are evaluated (0 = before training).
        samples: Dataset indices, in the order in which they stand in the batch.
        lengths: Tokens of each sample.
        labelled: Tokens of each sample that have a target; all of them where none are given.
        loads: What each sample takes of the capacity; its tokens where none are given.
    """

    job: str
    step: int
    samples: tuple[int, ...]
    lengths: tuple[int, ...]
    labelled: tuple[int, ...] = ()
    loads: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("labelled", "loads"):
            if not getattr(self, name):
                object.__setattr__(self, name, self.lengths)


@dataclass(frozen=True, slots=True)
class Place:
    """A position in the plan: one microbatch of one kind, or nothing (``noop``).

    Attributes:
        kind: What is done with the segments. Train and eval never share a place.
        segments: At most one per job, in the order of the queues.
        completes: The (job, step) pairs of this kind whose last sample stands here.
    """

    kind: PlaceKind
    segments: tuple[PlannedSegment, ...] = ()
    completes: tuple[tuple[str, int], ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of the microbatch."""
        return sum(sum(segment.lengths) for segment in self.segments)

    def load(self, limits: Limits) -> int:
        """What the microbatch takes of the capacity."""
        samples = sum(sum(segment.loads) for segment in self.segments)
        return samples + limits.segment_load * len(self.segments)


@dataclass(frozen=True, slots=True)
class Plan:
    """The places of one window, in the order in which they enter stage 0.

    Plain data: nothing is checked here. :func:`lorafusion.planner.verify.verify_plan` checks the
    rules against the queues the plan was made from.

    Attributes:
        limits: What the plan was made for.
        places: The places.
        alone: Jobs that share no microbatch, because sharing would gain them nothing.
    """

    limits: Limits
    places: tuple[Place, ...]
    alone: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The plan as one line of JSON. Equal plans give equal text."""
        document = {"format": FORMAT, **asdict(self)}
        return json.dumps(document, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what :meth:`to_json` wrote.

        Raises:
            PlanError: ``text`` is not JSON of this format; says which field, and what it may hold.
        """
        parsed = fields.parse(text, "a plan")
        is_object = isinstance(parsed, dict)
        version = cast("dict[str, object]", parsed).get("format") if is_object else None
        if type(version) is not int or version != FORMAT:
            raise PlanError(
                f"plan: format is {version!r}; this version reads format {FORMAT}. "
                "Plan again with this version of lorafusion."
            )
        document = fields.mapping(parsed, "plan", ("format", "limits", "places", "alone"))
        places = enumerate(fields.items(document["places"], "plan: places"))
        alone = enumerate(fields.items(document["alone"], "plan: alone"))
        return cls(
            limits=Limits.from_fields(document["limits"], "plan: limits"),
            places=tuple(_place(value, f"plan: places[{index}]") for index, value in places),
            alone=tuple(fields.text(value, f"plan: alone[{index}]") for index, value in alone),
        )


def _place(value: object, where: str) -> Place:
    found = fields.mapping(value, where, ("kind", "segments", "completes"))
    kind = found["kind"]
    if kind not in get_args(PlaceKind):
        raise fields.wrong(f"{where}.kind", kind, '"train", "eval" or "noop"')
    segments = enumerate(fields.items(found["segments"], f"{where}.segments"))
    completes = enumerate(fields.items(found["completes"], f"{where}.completes"))
    return Place(
        kind=cast("PlaceKind", kind),
        segments=tuple(_segment(item, f"{where}.segments[{i}]") for i, item in segments),
        completes=tuple(_pair(item, f"{where}.completes[{i}]") for i, item in completes),
    )


def _segment(value: object, where: str) -> PlannedSegment:
    least = {"samples": 0, "lengths": 1, "labelled": 0, "loads": 1}
    found = fields.mapping(value, where, ("job", "step", *least))
    columns = {n: fields.integers(found[n], f"{where}.{n}", least=least[n]) for n in least}
    count = len(columns["samples"])
    for name, column in columns.items():
        if not column or len(column) != count:
            allowed = f"one number per sample ({count}), and at least one"
            raise fields.wrong(f"{where}.{name}", len(column), allowed)
    return PlannedSegment(
        job=fields.text(found["job"], f"{where}.job"),
        step=fields.integer(found["step"], f"{where}.step", least=0),
        **columns,
    )


def _pair(value: object, where: str) -> tuple[str, int]:
    pair = fields.items(value, where)
    if len(pair) != 2:
        raise fields.wrong(where, value, "a pair [job, step]")
    return fields.text(pair[0], f"{where}[0]"), fields.integer(pair[1], f"{where}[1]", least=0)
