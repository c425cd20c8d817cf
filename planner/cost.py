"""What a microbatch costs on each pipeline stage: seconds and bytes, linear in a few counts of it.

The counts are enough because every part of a step is linear in one of them: matrix products and
passes over the rows in tokens, causal attention in the squares of the samples' lengths, the head in
labelled rows, LoRA's products in tokens times rank, half-empty tiles in segments.

A model comes from :mod:`lorafusion.planner.default_cost`, or from measurements.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import cast

from lorafusion.errors import PlanError
from lorafusion.planner.plan import Place

__all__ = ["CostModel", "Counts", "Linear", "StageCost", "read_linear", "read_stage"]


@dataclass(frozen=True, slots=True)
class Counts:
    """What the costs of a microbatch depend on. Whole numbers; an average of many may be broken.

    Attributes:
        tokens: Rows.
        squares: Sum of the squares of the samples' lengths.
        labelled: Rows that have a target.
        segments: Jobs.
        token_ranks: Sum over the samples of tokens times the rank of their job's adapter.
    """

    tokens: float = 0
    squares: float = 0
    labelled: float = 0
    segments: float = 0
    token_ranks: float = 0

    @classmethod
    def of(cls, place: Place, ranks: Mapping[str, int]) -> Counts:
        """The counts of one place; all zero for a no-op.

        Args:
            place: A place of a plan.
            ranks: Job -> rank of its adapter.

        Raises:
            PlanError: A job of the place has no rank.
        """
        missing = [segment.job for segment in place.segments if segment.job not in ranks]
        if missing:
            raise PlanError(
                f"job {missing[0]!r} has no rank; the cost of a microbatch depends on the rank of "
                f"each job in it. Given: {', '.join(map(repr, sorted(ranks))) or 'none'}."
            )
        segments = place.segments
        return cls(
            tokens=place.tokens,
            squares=sum(length * length for segment in segments for length in segment.lengths),
            labelled=sum(sum(segment.labelled) for segment in segments),
            segments=len(segments),
            token_ranks=sum(sum(segment.lengths) * ranks[segment.job] for segment in segments),
        )

    def scaled(self, factor: float) -> Counts:
        """``factor`` times as much work, in as many segments."""
        return Counts(
            self.tokens * factor,
            self.squares * factor,
            self.labelled * factor,
            self.segments,
            self.token_ranks * factor,
        )


@dataclass(frozen=True, slots=True)
class Linear:
    """A cost that is linear in :class:`Counts`; seconds or bytes per unit of each."""

    fixed: float = 0.0
    token: float = 0.0
    square: float = 0.0
    labelled: float = 0.0
    segment: float = 0.0
    token_rank: float = 0.0

    def __call__(self, counts: Counts) -> float:
        """The cost of a microbatch."""
        return (
            self.fixed
            + self.token * counts.tokens
            + self.square * counts.squares
            + self.labelled * counts.labelled
            + self.segment * counts.segments
            + self.token_rank * counts.token_ranks
        )

    def __add__(self, other: Linear) -> Linear:
        return Linear(*(a + b for a, b in zip(self.values, other.values, strict=True)))

    def scaled(self, factor: float) -> Linear:
        """``factor`` times the cost."""
        return Linear(*(value * factor for value in self.values))

    @property
    def values(self) -> tuple[float, ...]:
        """The coefficients in the order of the fields."""
        return (
            self.fixed,
            self.token,
            self.square,
            self.labelled,
            self.segment,
            self.token_rank,
        )


@dataclass(frozen=True, slots=True)
class StageCost:
    """What one pipeline stage takes.

    Attributes:
        forward: Seconds of a microbatch's forward.
        backward: Seconds of its backward, with a second forward where activations are recomputed.
        step_fixed_s: Seconds of one job's optimizer step, whatever its rank.
        step_rank_s: Seconds that each unit of its rank adds.
        activation: Bytes held for one microbatch from its forward to its backward.
        static_bytes: Bytes held throughout: the base's weights, adapters, AdamW's state.
        working: Bytes needed on top, once, while a microbatch is being computed.
    """

    forward: Linear
    backward: Linear
    step_fixed_s: float = 0.0
    step_rank_s: float = 0.0
    activation: Linear = Linear()
    static_bytes: float = 0.0
    working: Linear = Linear()

    @property
    def seconds(self) -> Linear:
        """Forward and backward together."""
        return self.forward + self.backward


@dataclass(frozen=True, slots=True)
class CostModel:
    """The stages, and what lies between them.

    Attributes:
        stages: In the order in which a microbatch goes through them.
        transfer: Seconds in which a microbatch's hidden state, or its gradient, goes one stage on.
        source: Where the numbers come from, to be shown to people.

    Raises:
        PlanError: No stage, or a number that is not finite or below zero; the message names it.
    """

    stages: tuple[StageCost, ...]
    transfer: Linear = Linear()
    source: str = "given"

    def __post_init__(self) -> None:
        if not self.stages:
            raise PlanError("cost model: it has no stage; allowed: one or more.")
        parts = [(f"stages[{index}]", stage) for index, stage in enumerate(self.stages)]
        for where, part in [*parts, ("transfer", self.transfer)]:
            for name, value in _numbers(part, where):
                if not 0 <= value < math.inf:
                    raise _wrong(name, value, "a finite number of at least 0")

    def slowest(self, typical: Counts) -> int:
        """The stage that takes longest, forward and backward, of work like ``typical``."""
        seconds = [stage.seconds(typical) for stage in self.stages]
        return seconds.index(max(seconds))

    def to_json(self) -> str:
        """The model as indented JSON, for people to read and edit."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> CostModel:
        """Read what :meth:`to_json` wrote.

        Raises:
            PlanError: ``text`` is not JSON of this format, or as the class; says which field.
        """
        try:
            parsed: object = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PlanError(f"a cost model must be JSON: {error}") from error
        found = _object(parsed, "the document", ("format", "stages", "transfer", "source"))
        version, stages, source = found["format"], found["stages"], found["source"]
        if type(version) is not int or version != _FORMAT:
            raise _wrong("format", version, str(_FORMAT))
        if not isinstance(stages, list):
            raise _wrong("stages", stages, "a list")
        if not isinstance(source, str):
            raise _wrong("source", source, "a text")
        items = enumerate(cast("list[object]", stages))
        return cls(
            stages=tuple(read_stage(item, f"stages[{index}]") for index, item in items),
            transfer=read_linear(found["transfer"], "transfer"),
            source=source,
        )


_FORMAT = 1


def _numbers(value: object, where: str) -> Iterator[tuple[str, float]]:
    """Every number of a stage or a linear, with its path."""
    if isinstance(value, StageCost | Linear):
        for field in fields(value):
            yield from _numbers(getattr(value, field.name), f"{where}.{field.name}")
    else:
        yield where, cast("float", value)


def read_stage(value: object, where: str) -> StageCost:
    """What ``dataclasses.asdict`` and JSON made of a stage's cost; ``where`` is named in errors.

    Raises:
        PlanError: ``value`` is something else; says which field.
    """
    found = _object(value, where, [field.name for field in fields(StageCost)])

    def linear(name: str) -> Linear:
        return read_linear(found[name], f"{where}.{name}")

    def number(name: str) -> float:
        return _number(found[name], f"{where}.{name}")

    return StageCost(
        forward=linear("forward"),
        backward=linear("backward"),
        step_fixed_s=number("step_fixed_s"),
        step_rank_s=number("step_rank_s"),
        activation=linear("activation"),
        static_bytes=number("static_bytes"),
        working=linear("working"),
    )


def read_linear(value: object, where: str) -> Linear:
    """The same of a linear cost."""
    found = _object(value, where, [field.name for field in fields(Linear)])
    return Linear(**{name: _number(item, f"{where}.{name}") for name, item in found.items()})


def _number(value: object, where: str) -> float:
    # type(), not isinstance: JSON's true is an int to Python.
    if type(value) not in (int, float):
        raise _wrong(where, value, "a number")
    try:
        return float(cast("float", value))
    except OverflowError:  # an integer of more than 308 digits
        return math.inf


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _object(value: object, where: str, names: Sequence[str]) -> dict[str, object]:
    if not _is_object(value) or set(cast("dict[str, object]", value)) != set(names):
        raise _wrong(where, value, f"an object with exactly the fields {', '.join(names)}")
    return cast("dict[str, object]", value)


def _wrong(where: str, found: object, allowed: str) -> PlanError:
    shown = repr(found)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return PlanError(
        f"cost model: {where} is {shown}; allowed: {allowed}. Mend it, measure again, or leave the "
        "cost model out to have the default."
    )
