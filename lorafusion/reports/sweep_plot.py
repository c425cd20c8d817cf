"""Drawings of a sweep: loss by what was swept.

One number: loss over its values. A number and another field of few values: a line for each of the
latter. All else: a drawing for each field, in which every job is a dot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from lorafusion.jobs.ranking import Ranking, Variant
from lorafusion.plans import colours
from lorafusion.reports.svg import Box, chart, grid, line, marks
from lorafusion.reports.sweep_axes import Axis, Scale, axes_of

__all__ = ["sweep_plot"]

_HEIGHT, _ROW, _MOST_ROWS = 200, 40, 40
_MOST_LINES = len(colours.PALETTE)
_STAR, _LOST = "★", "×"


def sweep_plot(ranking: Ranking) -> str:
    """HTML; empty where nothing varies or fewer than two jobs have a rank."""
    axes = axes_of(ranking)
    if not axes or len(ranking.ranked) < 2:
        return ""
    numbers = sorted(
        (axis for axis in axes if axis.scale is not None),
        key=lambda axis: -len(axis.values(ranking.rows)),
    )
    rest = [axis for axis in axes if axis is not numbers[0]] if numbers else axes
    if numbers and not rest:
        return _titled(ranking, numbers[0], _lines(ranking, numbers[0], None)) + _lost(ranking)
    few = len(rest) == 1 and len(rest[0].values(ranking.rows)) <= _MOST_LINES
    if numbers and few:
        body = _legend(rest[0], ranking) + _lines(ranking, numbers[0], rest[0])
        more = f", a line for each {rest[0].title}"
        return _titled(ranking, numbers[0], body, more) + _lost(ranking)
    parts = [
        _titled(ranking, axis, _lines(ranking, axis, None) if axis.scale else _rows(ranking, axis))
        for axis in axes
    ]
    told = "Each job is a dot; lines go through the lowest loss at each value."
    several = f'<p class="hint">{told}</p>' if len(axes) > 1 else ""
    lost = _lost(ranking) if numbers else ""  # rows have no place for them
    return f'{several}<div class="pair">{"".join(parts)}</div>{lost}'


def _lost(ranking: Ranking) -> str:
    told = f"{_LOST} stands for jobs without a finite loss, or that failed."
    return f'<p class="hint">{told}</p>' if ranking.others else ""


def _titled(ranking: Ranking, axis: Axis, body: str, more: str = "") -> str:
    loss = _losses(ranking)
    metric = ranking.metric.capitalize() + (" (logarithmic)" if loss.log else "")
    over = axis.title + (" (logarithmic)" if axis.scale and axis.scale.log else "")
    return f"<div><h3>{escape(f'{metric} by {over}{more}')}</h3>\n{body}</div>"


def _losses(ranking: Ranking) -> Scale:
    return Scale.of(_loss(ranking, variant) for variant in ranking.ranked)


def _loss(ranking: Ranking, variant: Variant) -> float:
    loss = ranking.loss(variant)
    assert loss is not None, "ranked jobs have one"
    return loss


def _lines(ranking: Ranking, axis: Axis, other: Axis | None) -> str:
    """Loss over the numbers of an axis, with a line for each value of the other."""
    assert axis.scale is not None
    losses = _losses(ranking)
    box = Box(*axis.scale.span(0.10, 0.06), *losses.span(0.16, 0.10), 14, _HEIGHT)
    across = [(losses.at(value), f"{value:g}") for value in losses.marks()]
    labels = axis.labels(ranking.rows, box.right - box.left)
    parts = [grid(box, across, labels)]
    for index, group in enumerate(_groups(ranking, other)):
        colour = colours.base(index) if other else ""
        points = [(axis.number(v), losses.at(_loss(ranking, v))) for v in group]
        lowest = {x: min(y for at, y in points if at == x) for x, _ in points}
        parts.append(line(box, sorted(lowest.items()), "smooth one", colour))
        parts.append(marks(box, points, colour, "dots one"))
    parts += [_text(box, axis.number(v), box.high, _LOST, "lost", 10) for v in ranking.others]
    for best in ranking.best:
        y = losses.at(_loss(ranking, best))
        parts.append(_text(box, axis.number(best), y, _star(ranking, best), "on star", 19))
    return chart(box.top + box.height + 20, _label(ranking, axis), parts)


def _rows(ranking: Ranking, axis: Axis) -> str:
    """Loss by the values of an axis that are no numbers, the best at the top."""
    losses = _losses(ranking)
    left, right = losses.span(0.03, 0.12)
    names = list(dict.fromkeys(axis.text(variant) for variant in ranking.ranked))[:_MOST_ROWS]
    parts: list[str] = []
    for row, name in enumerate(names):
        box = Box(left, right, 0.0, 1.0, row * _ROW + 18, 18)
        group = [variant for variant in ranking.ranked if axis.text(variant) == name]
        parts.append(f'<text class="on" x="0" y="{box.top - 4}">{escape(name)}</text>')
        parts.append(grid(box, [(0.5, "")], []))
        points = [(losses.at(_loss(ranking, variant)), 0.5) for variant in group]
        stars = [_star(ranking, group[0])] if ranking.is_best(group[0]) else []
        parts.append(marks(box, points, "", "dots one"))
        parts += [_text(box, points[0][0], 0.5, told, "on star", 4, beside=9) for told in stars]
    end = Box(left, right, 0.0, 1.0, len(names) * _ROW, 0)
    parts.append(grid(end, [], [(losses.at(v), f"{v:g}") for v in losses.marks()]))
    return chart(len(names) * _ROW + 20, _label(ranking, axis), parts)


def _groups(ranking: Ranking, other: Axis | None) -> Iterator[list[Variant]]:
    if other is None:
        yield list(ranking.ranked)
        return
    for value in other.values(ranking.rows):
        yield [variant for variant in ranking.ranked if other.text(variant) == value]


def _legend(axis: Axis, ranking: Ranking) -> str:
    entries: Iterable[str] = (
        f'<span><svg class="swatch" aria-hidden="true"><rect fill="{colours.base(index)}" '
        f'width="100%" height="100%"/></svg>{escape(value)}</span>'
        for index, value in enumerate(axis.values(ranking.rows))
    )
    return f'<div class="legend">{"".join(entries)}</div>'


def _star(ranking: Ranking, best: Variant) -> str:
    return f"{_STAR} {_loss(ranking, best):.4f}"


def _text(  # noqa: PLR0913 - where it stands
    box: Box, x: float, y: float, text: str, name: str, below: int, *, beside: int = 0
) -> str:
    share = box.x(x)
    near = len(text) > 1 and (share < 0.12 or share > 0.88)
    anchor = "start" if beside or (near and share < 0.5) else "end" if near else "middle"
    shift = f' dx="{beside}"' if beside else ""
    return (
        f'<text class="{name}" x="{100 * share:.2f}%" y="{box.top + box.y(y) + below:.1f}"{shift} '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )


def _label(ranking: Ranking, axis: Axis) -> str:
    best: Sequence[Variant] = ranking.best
    told = f"lowest {_loss(ranking, best[0]):.4f} at {axis.text(best[0])}"
    jobs = len(ranking.ranked)
    return (
        f"{ranking.metric.capitalize()} of {jobs} jobs by {axis.title}; {told}; the table has all"
    )
