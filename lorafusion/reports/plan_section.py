"""Planned beside measured: figures, and a compact picture of the first places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lorafusion.planner.simulate import Action
from lorafusion.plans import colours
from lorafusion.plans.excerpt import Budget, Lane
from lorafusion.plans.halves import Halves
from lorafusion.plans.overview import shares
from lorafusion.plans.quantities import duration, percent
from lorafusion.plans.summary import job_names
from lorafusion.reports.svg import bar, chart
from lorafusion.reports.tables import legend, table

__all__ = ["plan_section"]

_PLACES, _LANES, _BLOCKS = 24, 64, 4_000
"""The most that is drawn of a half; a block takes 90 bytes."""
_LANE, _BLOCK, _TITLE = 22, 19, 16
_HINT = (
    "On top the same places as the schedule alone would have them, with forwards, backwards, steps "
    "and messages as long as they were in this run on average for their load; below what was "
    "measured. Light is a forward, dark a backward, in the colours of the jobs; a thin black or "
    "white mark is an optimizer step; what is left open is idle."
)


def plan_section(halves: Halves, pipeline: Mapping[str, Any], link: str) -> str:
    """HTML; ``link``: of the page with all places, empty where there is none."""
    rows = [
        ["time", duration(pipeline["planned_s"], "s"), duration(pipeline["measured_s"], "s")],
        ["bubble", percent(pipeline["planned_bubble"]), percent(pipeline["bubble"])],
        [
            "bubble without ramps",
            percent(pipeline["planned_bubble_without_ramp"]),
            percent(pipeline["bubble_without_ramp"]),
        ],
    ]
    for stage, row in enumerate(halves.rows()):
        rows.append([f"idle, stage {stage}", percent(row.planned_idle), percent(row.idle)])
    more = f'<p><a href="{link}">All places, to zoom into: {link}</a></p>' if link else ""
    return "\n".join(
        [
            f'<p class="hint">{_HINT}</p>',
            legend([("step", "optimizer step"), ("idle", "idle")]),
            _picture(halves),
            more,
            table(["", "planned", "measured"], rows),
        ]
    )


def _picture(halves: Halves) -> str:
    # A place is a forward and a backward on each stage, in each a block a segment.
    per_segment = 2.0 * halves.summary.stages
    planned, measured = halves.excerpts(Budget(_PLACES, _LANES, _BLOCKS, 1.0, per_segment))
    parts: list[str] = []
    top = 0
    for title, half in (("planned", planned), ("measured", measured)):
        parts.append(f'<text x="0" y="{top + 11}">{title}</text>')
        top += _TITLE
        for lane in half.lanes:
            parts += _lane(halves, lane, measured.end or 1.0, top)
            top += _LANE
        top += 4
    parts.append(f'<text x="0" y="{top + 12}">0</text>')
    text = duration(measured.end, "s")
    parts.append(f'<text x="100%" y="{top + 12}" text-anchor="end">{text}</text>')
    label = f"The first {text} of each stage, planned above measured; the table has the shares"
    return chart(top + 18, label, parts)


def _lane(halves: Halves, lane: Lane, end: float, top: int) -> Iterator[str]:
    plan = halves.recording.plan
    indices = {name: index for index, name in enumerate(job_names(plan))}
    yield bar(0, 1, top, _BLOCK, 'class="idle"')
    for action in lane.actions:
        start, width = action.start_s / end, (min(action.end_s, end) - action.start_s) / end
        if action.kind == "step":
            yield bar(start, max(width, 0.001), top, _BLOCK, 'class="step"')
            continue
        y = float(top)
        for job, share in shares(plan.places[action.place], plan, indices):
            yield bar(start, width, y, share * _BLOCK, f'fill="{_colour(action, job)}"')
            y += share * _BLOCK


def _colour(action: Action, job: int) -> str:
    return (colours.backward if action.kind == "backward" else colours.forward)(job)
