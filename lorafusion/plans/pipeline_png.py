"""A run as a picture: what was planned above what was measured, at one scale of time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorafusion.plans.excerpt import Budget
from lorafusion.plans.halves import MEASURED, PLANNED, Halves
from lorafusion.plans.picture import Picture, lanes_height, need_matplotlib
from lorafusion.plans.quantities import count, duration, percent

__all__ = ["draw"]

# Waits stand between the blocks: fewer places than of a plan can be told apart.
_BUDGET = Budget(places=60, lanes=32)
# Inches.
_STRIP = 0.8


def draw(path: Path, halves: Halves) -> None:
    """Write a PNG: the measured run as a strip, and below it both halves, a lane per stage.

    Of a long run the lanes show the first places; the picture says which.

    Raises:
        LorafusionError: matplotlib is not installed.
    """
    need_matplotlib(path)
    from lorafusion.plans.png_panels import draw_beside, draw_lanes, draw_strip

    plan, summary = halves.recording.plan, halves.summary
    planned, measured = halves.excerpts(_BUDGET)
    height = lanes_height(len(planned.lanes))
    picture = Picture(summary, [_STRIP, height, height])
    strip, above, below = picture.panels
    draw_strip(strip, plan, halves.run.simulation, summary)
    draw_lanes(above, plan, planned, summary, PLANNED.capitalize())
    draw_lanes(below, plan, measured, summary, MEASURED.capitalize())
    waits: list[tuple[int, float, float]] = []
    sends: list[tuple[int, float, float]] = []
    for row, lane in enumerate(measured.lanes):
        for entry in halves.beside(lane.stage, measured.end):
            spans = waits if entry.kind == "wait" else sends
            spans.append((row, entry.start_s, entry.end_s))
    draw_beside(below, waits, sends, summary)
    picture.title(_facts(halves))
    picture.legends(_kinds())
    picture.save(path)


def _facts(halves: Halves) -> list[str]:
    run, plan, summary = halves.run.simulation, halves.planned, halves.summary
    return [
        f"{count(len(summary.jobs), 'job')} on {summary.grid}",
        count(halves.recording.places, "place"),
        f"measured {duration(run.makespan_s, 's')}, planned {duration(plan.makespan_s, 's')}",
        f"bubble {percent(run.bubble)}, planned {percent(plan.bubble)}",
        f"without ramp {percent(run.bubble_without_ramp)}, "
        f"planned {percent(plan.bubble_without_ramp)}",
    ]


def _kinds() -> list[tuple[Any, str]]:
    """Legend of what no plan has."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    from lorafusion.plans.png_panels import SOFT, WAIT

    look = {"facecolor": WAIT["facecolors"], "edgecolor": WAIT["edgecolors"]}
    return [
        (Patch(hatch=WAIT["hatch"], lw=0, **look), "waiting"),
        (Line2D([], [], color=SOFT, lw=2), "sending"),
    ]
