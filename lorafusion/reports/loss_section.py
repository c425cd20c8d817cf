"""The loss curves: all jobs in one chart, and each job in a small one of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from lorafusion.plans import colours
from lorafusion.reports.curves import Curve
from lorafusion.reports.svg import Box, chart, grid, line, marks, step_ticks, ticks

__all__ = ["LISTED", "loss_section"]

LISTED = 300
"""Jobs with a chart of their own."""
_FILTER_FROM = 9
_HINT = (
    "Training loss in nats per trained token: pale each step, bold smoothed (a running mean over "
    "about a tenth of the steps); dots are held-out losses; the thin line below is the learning "
    "rate, from 0. Point at a curve or a card for its numbers."
)


def loss_section(curves: Sequence[Curve]) -> str:
    """HTML; says so where nothing was logged yet."""
    shown = [c for c in curves if c.steps or c.evals][:LISTED]
    if not shown:
        return '<p class="note">No step and no evaluation has been logged yet.</p>'
    silent = [c.name for c in curves if not c.steps and not c.evals]
    parts = [f'<p class="hint">{_HINT}</p>']
    if len(shown) > 1:
        parts.append(_together(shown))
    if len(shown) >= _FILTER_FROM:
        parts.append(
            '<p><label>Jobs whose name has <input id="filter" type="search" '
            'autocomplete="off"></label></p>'
        )
    cards = "\n".join(_card(index, curve) for index, curve in enumerate(shown))
    parts.append(f'<div class="cards">\n{cards}\n</div>')
    if silent:
        parts.append(f'<p class="note">Without a step so far: {escape(", ".join(silent[:50]))}</p>')
    left = sum(1 for c in curves if c.steps or c.evals) - len(shown)
    if left > 0:
        parts.append(f'<p class="note">{left:,} more jobs have no chart here.</p>')
    return "\n".join(parts)


def _together(curves: Sequence[Curve]) -> str:
    values = [value for c in curves for value in c.smooth if value is not None]
    last = max((c.steps[-1] for c in curves if c.steps), default=1)
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = (high - low or abs(high) or 1.0) * 0.05
    # From 0 where that costs less than a third of the height.
    floor = 0.0 if 0 <= low < high / 3 else low - room
    box = Box(0, last, floor, high + room, 14, 240)
    parts = [
        grid(
            box,
            [(value, f"{value:g}") for value in ticks(box.low, box.high, 5)],
            [(step, f"{step:,}") for step in step_ticks(last)],
        )
    ]
    for index, curve in enumerate(curves):
        points = zip(curve.steps, curve.smooth, strict=True)
        name = f"job j{index}"
        parts.append(line(box, points, name, colours.base(index)))
    label = f"Smoothed training loss of {len(curves)} jobs by step; each job's own is below"
    readout = '<output id="nearest" class="hint">smoothed training loss by step</output>'
    where = f'data-last="{last}" data-low="{box.low:.6g}" data-high="{box.high:.6g}"'
    shape = f'data-top="{box.top}" data-height="{box.height}"'
    return (
        f'<div id="together" {where} {shape}>{chart(box.top + box.height + 20, label, parts)}'
        f"</div>\n{readout}"
    )


def _card(index: int, curve: Curve) -> str:
    colour = colours.base(index)
    values = [v for v in (*curve.losses, *(loss for _, loss in curve.evals)) if v is not None]
    last = max([*curve.steps[-1:], *(step for step, _ in curve.evals[-1:]), 1])
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = (high - low or abs(high) or 1.0) * 0.06
    box = Box(0, last, low - room, high + room, 14, 84)
    rates = Box(0, last, 0.0, max(curve.rates, default=0.0) or 1.0, 104, 16)
    parts = [
        grid(box, [(high, f"{high:.3g}"), (low, f"{low:.3g}")], []),
        line(box, zip(curve.steps, curve.losses, strict=True), "raw", colour),
        line(box, zip(curve.steps, curve.smooth, strict=True), "smooth", colour),
        marks(box, curve.evals, colour),
        line(rates, zip(curve.steps, curve.rates, strict=True), "rate", ""),
        '<line class="cursor" visibility="hidden" y1="14" y2="98"/>',
    ]
    name = escape(curve.name)
    label = f"Loss of {curve.name} over {last} steps, {', '.join(_ends(curve))}"
    return (
        f'<figure class="card" data-job="{index}" data-last="{last}"><figcaption><b>{name}</b>'
        f"</figcaption>{chart(124, label, parts)}<output>{escape(', '.join(_ends(curve)))}"
        "</output></figure>"
    )


def _ends(curve: Curve) -> Iterator[str]:
    finite = [value for value in curve.losses if value is not None]
    if finite:
        yield f"{finite[0]:.3f} → {finite[-1]:.3f}"
    if curve.evals:
        yield f"held-out {curve.evals[0][1]:.3f} → {curve.evals[-1][1]:.3f}"
