"""Axes of a sweep's plots: where values and losses stand, and what is written beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lorafusion.jobs.ranking import Ranking, Variant, shown
from lorafusion.reports.svg import ticks

__all__ = ["Axis", "Scale", "axes_of"]

_DECADE = 10.0
# Of a chart on a telephone, and of a letter in it, in pixels.
_NARROWEST, _LETTER, _BETWEEN = 320, 6.4, 12


@dataclass(frozen=True, slots=True)
class Scale:
    """Numbers on a line, logarithmic where they span more than a decade.

    Attributes:
        low: The least, but for 0 on a logarithmic one.
        high: The greatest.
        log: Whether it is logarithmic.
        zero: Whether there is a 0 on a logarithmic one: a decade before the least.
    """

    low: float
    high: float
    log: bool
    zero: bool = False

    @classmethod
    def of(cls, values: Iterable[float]) -> Scale:
        """That of some values, at least one."""
        found = set(values)
        above = found - {0.0}
        if above and min(above) > 0 and max(above) / min(above) > _DECADE:
            return cls(min(above), max(above), log=True, zero=above != found)
        return cls(min(found), max(found), log=False)

    def at(self, value: float) -> float:
        """Where a value stands."""
        if not self.log:
            return float(value)
        return math.log10(value) if value else math.log10(self.low) - 1

    def span(self, before: float, behind: float) -> tuple[float, float]:
        """Its ends, with shares of its length as room."""
        low, high = self.at(0.0 if self.zero else self.low), self.at(self.high)
        length = high - low or abs(high) or 1.0
        return low - before * length, high + behind * length

    def marks(self) -> list[float]:
        """Round values on it."""
        if not self.log:
            return ticks(self.low, self.high, 6)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        steps = (1, 2, 5) if last - first <= 2 else (1,)
        every = max(1, (last - first) // 6)
        tens = range(first, last + 1, every)
        found = [step * 10.0**power for power in tens for step in steps]
        return [value for value in found if self.low <= value <= self.high]


@dataclass(frozen=True, slots=True)
class Axis:
    """Fields that vary together.

    Attributes:
        fields: Their names.
        scale: Of the numbers in the one that is plotted; None where its values are no numbers.
        leader: The field that is plotted.
    """

    fields: tuple[str, ...]
    scale: Scale | None
    leader: str

    @property
    def title(self) -> str:
        """Its name, such as ``adapter.r with adapter.lora_alpha``."""
        rest = [field for field in self.fields if field != self.leader]
        return f"{self.leader} with {', '.join(rest)}" if rest else self.leader

    def number(self, variant: Variant) -> float:
        """A job's place on the scale."""
        assert self.scale is not None
        return self.scale.at(variant.choice[self.leader])

    def text(self, variant: Variant) -> str:
        """A job's value in words."""
        return ", ".join(shown(variant.choice.get(field)) for field in self.fields)

    def values(self, variants: Sequence[Variant]) -> list[str]:
        """All values in words: numbers by size, others in the order of the file."""
        found = {self.text(variant): variant for variant in variants}
        if self.scale is None:
            return list(found)
        return sorted(found, key=lambda text: self.number(found[text]))

    def labels(self, variants: Sequence[Variant], width: float) -> list[tuple[float, str]]:
        """(place, text) of values that do not overlap: the ends first.

        Args:
            variants: The jobs.
            width: Of the axis, in units of the places.
        """
        numbers = {self.number(v): shown(v.choice[self.leader]) for v in variants}
        places = sorted(numbers)
        order = [*dict.fromkeys([places[0], places[-1], *places])]
        kept: list[float] = []
        for place in order:
            if all(
                abs(place - other) / width * _NARROWEST
                >= _LETTER * (len(numbers[place]) + len(numbers[other])) / 2 + _BETWEEN
                for other in kept
            ):
                kept.append(place)
        return [(place, numbers[place]) for place in sorted(kept)]


def axes_of(ranking: Ranking) -> list[Axis]:
    """The fields that vary, those that go together as one."""
    return [_axis(ranking.rows, fields) for fields in ranking.axes()]


def _axis(variants: Sequence[Variant], fields: tuple[str, ...]) -> Axis:
    for field in fields:
        values = [variant.choice.get(field) for variant in variants]
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            return Axis(fields, Scale.of(float(value) for value in values), field)  # pyright: ignore[reportArgumentType]
    return Axis(fields, None, fields[0])
