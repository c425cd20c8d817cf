"""The plan: the ordered microbatches of a window, as plain data that goes to JSON and back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal, cast, get_args

from lorafusion.errors import PlanError

__all__ = ["FORMAT", "Limits", "Place", "PlaceKind", "Plan", "PlannedSegment"]

FORMAT = 2
"""Version of the JSON form; :meth:`Plan.from_json` refuses any other."""

PlaceKind = Literal["train", "eval", "noop"]


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
    """

    capacity: int
    stages: int = 1
    replicas: int = 1
    segment_load: int = 0

    @property
    def distance(self) -> int:
        """Least number of places from the last of step t to the first of step t+1 of a job."""
        return self.stages * self.replicas


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
        try:
            parsed: object = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PlanError(f"a plan must be JSON: {error}") from error
        version = cast("dict[str, object]", parsed).get("format") if _is_object(parsed) else None
        if type(version) is not int or version != FORMAT:
            raise PlanError(
                f"plan: format is {version!r}; this version reads format {FORMAT}. "
                "Plan again with this version of lorafusion."
            )
        document = _object(parsed, "plan", ("format", "limits", "places", "alone"))
        places = enumerate(_list(document["places"], "places"))
        alone = enumerate(_list(document["alone"], "alone"))
        return cls(
            limits=_limits(document["limits"]),
            places=tuple(_place(value, f"places[{index}]") for index, value in places),
            alone=tuple(_text(value, f"alone[{index}]") for index, value in alone),
        )


def _limits(value: object) -> Limits:
    least = {"capacity": 1, "stages": 1, "replicas": 1, "segment_load": 0}
    fields = _object(value, "limits", tuple(least))
    return Limits(**{n: _int(fields[n], f"limits.{n}", least=least[n]) for n in least})


def _place(value: object, where: str) -> Place:
    fields = _object(value, where, ("kind", "segments", "completes"))
    kind = fields["kind"]
    if kind not in get_args(PlaceKind):
        raise _wrong(f"{where}.kind", kind, '"train", "eval" or "noop"')
    segments = enumerate(_list(fields["segments"], f"{where}.segments"))
    completes = enumerate(_list(fields["completes"], f"{where}.completes"))
    return Place(
        kind=cast("PlaceKind", kind),
        segments=tuple(_segment(item, f"{where}.segments[{i}]") for i, item in segments),
        completes=tuple(_pair(item, f"{where}.completes[{i}]") for i, item in completes),
    )


def _segment(value: object, where: str) -> PlannedSegment:
    columns = {"samples": 0, "lengths": 1, "labelled": 0, "loads": 1}
    fields = _object(value, where, ("job", "step", *columns))
    values = {n: _ints(fields[n], f"{where}.{n}", least=least) for n, least in columns.items()}
    count = len(values["samples"])
    for name, column in values.items():
        if not column or len(column) != count:
            allowed = f"one number per sample ({count}), and at least one"
            raise _wrong(f"{where}.{name}", len(column), allowed)
    return PlannedSegment(
        job=_text(fields["job"], f"{where}.job"),
        step=_int(fields["step"], f"{where}.step", least=0),
        **values,
    )


def _pair(value: object, where: str) -> tuple[str, int]:
    items = _list(value, where)
    if len(items) != 2:
        raise _wrong(where, value, "a pair [job, step]")
    return _text(items[0], f"{where}[0]"), _int(items[1], f"{where}[1]", least=0)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _object(value: object, where: str, names: tuple[str, ...]) -> dict[str, object]:
    if not _is_object(value) or set(cast("dict[str, object]", value)) != set(names):
        raise _wrong(where, value, f"an object with exactly the fields {', '.join(names)}")
    return cast("dict[str, object]", value)


def _list(value: object, where: str) -> list[object]:
    if not isinstance(value, list):
        raise _wrong(where, value, "a list")
    return cast("list[object]", value)


def _int(value: object, where: str, *, least: int) -> int:
    # type(), not isinstance: JSON's true is an int to Python.
    if type(value) is not int or value < least:
        raise _wrong(where, value, f"an integer of at least {least}")
    return value


def _ints(value: object, where: str, *, least: int) -> tuple[int, ...]:
    items = enumerate(_list(value, where))
    return tuple(_int(item, f"{where}[{index}]", least=least) for index, item in items)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise _wrong(where, value, "a name that is not empty")
    return value


def _wrong(where: str, found: object, allowed: str) -> PlanError:
    shown = repr(found)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return PlanError(f"plan: {where} is {shown}; allowed: {allowed}.")
