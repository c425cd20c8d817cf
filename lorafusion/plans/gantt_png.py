"""A picture of a plan: who keeps the stages busy over the run, and what each stage does when."""

from __future__ import annotations

from pathlib import Path

from lorafusion.planner.plan import Plan
from lorafusion.planner.simulate import Simulation
from lorafusion.plans.excerpt import Budget, cut
from lorafusion.plans.picture import REMEDY, Picture, lanes_height, need_matplotlib
from lorafusion.plans.quantities import count, duration, percent
from lorafusion.plans.summary import PlanSummary

__all__ = ["REMEDY", "draw"]

# On 14 inches a forward of 90 places is about 8 pixels wide.
_BUDGET = Budget(places=90, lanes=64)
# Inches.
_STRIP = 1.0


def draw(path: Path, plan: Plan, simulation: Simulation, summary: PlanSummary) -> None:
    """Write a PNG: the whole run as a strip, and below it a lane per stage.

    Of a long plan the lanes show the first places; the picture says which.

    Raises:
        LorafusionError: matplotlib is not installed.
    """
    need_matplotlib(path)
    from lorafusion.plans.png_panels import draw_lanes, draw_strip

    excerpt = cut(plan, simulation, _BUDGET)
    picture = Picture(summary, [_STRIP, lanes_height(len(excerpt.lanes))])
    strip, lanes = picture.panels
    draw_strip(strip, plan, simulation, summary)
    draw_lanes(lanes, plan, excerpt, summary)
    picture.title(_facts(summary))
    picture.legends()
    picture.save(path)


def _facts(summary: PlanSummary) -> list[str]:
    unit = " load units" if summary.unit == "load" else ""
    return [
        f"{count(len(summary.jobs), 'job')} on {summary.grid}",
        f"{count(summary.places, 'place')}: {count(summary.microbatches, 'microbatch', 'es')} "
        f"and {count(summary.noops, 'no-op')}",
        f"makespan {duration(summary.makespan, summary.unit)}{unit}",
        f"bubble {percent(summary.bubble)}, without ramp {percent(summary.bubble_without_ramp)}",
        f"fill {percent(summary.fill)} of {summary.capacity:,}",
    ]
