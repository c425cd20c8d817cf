"""Small charts as inline SVG that fit any width: texts at percentages, curves in a stretched box.

Geometry is in attributes, never in ``style``: the page's content policy allows no inline style.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Box", "area", "bar", "chart", "grid", "line", "marks", "step_ticks", "ticks"]

_WIDE = 1000
"""Units of a stretched box across; its own height in pixels is its height in units."""


@dataclass(frozen=True, slots=True)
class Box:
    """A range of both axes, and the pixels that it is drawn in.

    Attributes:
        left: Least x.
        right: Greatest x.
        low: Least y.
        high: Greatest y.
        top: Pixels above the box.
        height: Pixels of the box.
    """

    left: float
    right: float
    low: float
    high: float
    top: int
    height: int

    def x(self, value: float) -> float:
        """Share of the width."""
        return (value - self.left) / (self.right - self.left) if self.right > self.left else 0.5

    def y(self, value: float) -> float:
        """Pixels below the top of the box."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.height * (1 - share)


def chart(height: int, label: str, parts: Iterable[str]) -> str:
    """An image of this height in pixels, as wide as there is room."""
    said = escape(label)
    body = "".join(parts)
    return (
        f'<svg class="chart" width="100%" height="{height}" role="img" aria-label="{said}">'
        f"{body}</svg>"
    )


def line(box: Box, points: Iterable[tuple[float, float | None]], name: str, stroke: str) -> str:
    """A curve of a CSS class and a colour; interrupted where a y is None."""
    path: list[str] = []
    command = "M"
    for x, y in points:
        if y is None:
            command = "M"
            continue
        path.append(f"{command}{_WIDE * box.x(x):.4g} {box.y(y):.4g}")
        command = "L"
    colour = f' stroke="{stroke}"' if stroke else ""
    return _stretched(box, f'<path class="{name}"{colour} d="{"".join(path)}"/>')


def marks(box: Box, points: Iterable[tuple[float, float]], stroke: str, name: str = "dots") -> str:
    """A round dot at each point: a path without length, which keeps its shape when stretched."""
    path = "".join(f"M{_WIDE * box.x(x):.4g} {box.y(y):.4g}h0" for x, y in points)
    colour = f' stroke="{stroke}"' if stroke else ""
    return _stretched(box, f'<path class="{name}"{colour} d="{path}"/>')


def area(
    box: Box, xs: Sequence[float], below: Sequence[float], above: Sequence[float], name: str
) -> str:
    """What lies between two curves."""
    there = [f"{_WIDE * box.x(x):.4g},{box.y(y):.5g}" for x, y in zip(xs, above, strict=True)]
    back = [f"{_WIDE * box.x(x):.4g},{box.y(y):.5g}" for x, y in zip(xs, below, strict=True)]
    return _stretched(box, f'<polygon class="{name}" points="{" ".join([*there, *back[::-1]])}"/>')


def bar(start: float, width: float, top: float, height: float, fill: str) -> str:
    """A rectangle; ``start`` and ``width`` are shares, ``fill`` is ``class="..."`` or the like."""
    return (
        f'<rect x="{100 * start:.3f}%" width="{100 * width:.3f}%" y="{top:.1f}" '
        f'height="{height:.1f}" {fill}/>'
    )


def grid(box: Box, lines: Iterable[tuple[float, str]], ends: Iterable[tuple[float, str]]) -> str:
    """Horizontal lines with (y, text) above them, and (x, text) below the box."""
    return "".join([*_across(box, lines), *_below(box, ends)])


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round values between two others."""
    if not high > low:
        return [low]
    power = 10 ** math.floor(math.log10((high - low) / most))
    step = next(f * power for f in (1, 2, 5, 10) if f * power * most >= (high - low) * 0.999999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def step_ticks(last: int) -> list[int]:
    """Round optimizer steps from 0 on."""
    return [round(value) for value in ticks(0, last) if value == round(value)] or [0, last]


def _across(box: Box, lines: Iterable[tuple[float, str]]) -> Iterator[str]:
    for value, text in lines:
        y = box.top + box.y(value)
        yield f'<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="on" x="2" y="{y - 3:.1f}">{escape(text)}</text>'


def _below(box: Box, ends: Iterable[tuple[float, str]]) -> Iterator[str]:
    for value, text in ends:
        share = box.x(value)
        anchor = "start" if share < 0.04 else "end" if share > 0.96 else "middle"
        yield (
            f'<text x="{100 * share:.2f}%" y="{box.top + box.height + 14}" '
            f'text-anchor="{anchor}">{escape(text)}</text>'
        )


def _stretched(box: Box, shape: str) -> str:
    return (
        f'<svg x="0" y="{box.top}" width="100%" height="{box.height}" '
        f'viewBox="0 0 {_WIDE} {box.height}" preserveAspectRatio="none">{shape}</svg>'
    )
