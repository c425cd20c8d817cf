"""A picture of a plan: who keeps the stages busy over the run, and what each stage does when."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

from lorafusion.errors import LorafusionError
from lorafusion.files import write_bytes_atomic
from lorafusion.planner.plan import Plan
from lorafusion.planner.simulate import Simulation
from lorafusion.plans import colours
from lorafusion.plans.excerpt import Budget, cut
from lorafusion.plans.quantities import count, duration, percent, printable
from lorafusion.plans.summary import PlanSummary

__all__ = ["REMEDY", "draw"]

REMEDY = "pip install 'lorafusion[bench]'"
# On 14 inches a forward of 90 places is about 8 pixels wide.
_BUDGET = Budget(places=90, lanes=64)
_DPI = 150
# Inches: the title, the strip, a lane, the panels' titles and axes, a line of the legend.
_WIDTH, _HEADER, _STRIP, _LANE, _AXES, _LINE = 14.0, 0.68, 1.0, 0.34, 1.5, 0.22
_COLUMNS, _LISTED, _LONGEST, _LONGEST_TITLE = 6, 18, 24, 90
_LIGHT, _DARK = "#c3cbd3", "#66717c"


def draw(path: Path, plan: Plan, simulation: Simulation, summary: PlanSummary) -> None:
    """Write a PNG: the whole run as a strip, and below it a lane per stage.

    Of a long plan the lanes show the first places; the picture says which.

    Raises:
        LorafusionError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        from lorafusion.plans.png_panels import draw_lanes, draw_strip
    except ImportError as error:
        raise LorafusionError(
            f"{path}: a picture of the plan is drawn with matplotlib, which cannot be imported "
            f"({error}). {REMEDY} brings it; the HTML page and the trace need nothing more."
        ) from error
    excerpt = cut(plan, simulation, _BUDGET)
    rows = max(0.6, len(excerpt.lanes) * _LANE)
    footer = _LINE * (2 + -(-min(len(summary.jobs), _LISTED) // _COLUMNS))
    height = _HEADER + _STRIP + rows + _AXES + footer
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0.004, footer / height, 0.988, 1 - (footer + _HEADER) / height))
    strip, lanes = figure.subplots(2, 1, height_ratios=[_STRIP, rows])
    draw_strip(strip, plan, simulation, summary)
    draw_lanes(lanes, plan, excerpt, summary)
    _title(figure, summary, height)
    _legends(figure, summary, (footer - 0.05) / height, height)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Of a job's name in a script that the font lacks, which is drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="png")
    write_bytes_atomic(path, buffer.getvalue())


def _title(figure: Any, summary: PlanSummary, height: float) -> None:
    unit = " load units" if summary.unit == "load" else ""
    facts = [
        f"{count(len(summary.jobs), 'job')} on {summary.grid}",
        f"{count(summary.places, 'place')}: {count(summary.microbatches, 'microbatch', 'es')} "
        f"and {count(summary.noops, 'no-op')}",
        f"makespan {duration(summary.makespan, summary.unit)}{unit}",
        f"bubble {percent(summary.bubble)}, without ramp {percent(summary.bubble_without_ramp)}",
        f"fill {percent(summary.fill)} of {summary.capacity:,}",
    ]
    lines = [
        (0.12, _short(summary.title, _LONGEST_TITLE), 14, "bold"),
        (0.40, "  ·  ".join(facts), 9.5, None),
    ]
    for down, text, points, weight in lines:
        figure.text(
            0.01,
            1 - down / height,
            text,
            va="top",
            fontsize=points,
            fontweight=weight,
            parse_math=False,
        )


def _legends(figure: Any, summary: PlanSummary, top: float, height: float) -> None:
    """Below the panels: what blocks and marks mean, then the jobs."""
    from matplotlib.patches import Patch

    _row(figure, _kinds(summary), top)
    jobs = [
        (Patch(color=colours.base(index)), _short(job.name))
        for index, job in enumerate(summary.jobs[:_LISTED])
    ]
    more = len(summary.jobs) - _LISTED
    if more > 0:
        jobs.append((Patch(alpha=0), f"and {count(more, 'more job')}; colours repeat"))
    _row(figure, jobs, top - _LINE / height)


def _kinds(summary: PlanSummary) -> list[tuple[Any, str]]:
    """Handles and labels of what this plan has."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    found: list[tuple[Any, str]] = [
        (Patch(color=_LIGHT), "forward (light)"),
        (Patch(color=_DARK), "backward (dark)"),
    ]
    if summary.evals:
        hatched = Patch(facecolor=_LIGHT, edgecolor="white", hatch="/////", lw=0)
        found.append((hatched, "eval (forward only)"))
    if summary.steps:
        found.append((Line2D([], [], color=_DARK, marker="v", markersize=4), "optimizer step"))
    if summary.noops:
        found.append((Line2D([], [], color=_DARK, lw=1, ls=(0, (2.5, 1.5))), "no-op"))
    return found


def _row(figure: Any, entries: list[tuple[Any, str]], top: float) -> None:
    legend = figure.legend(
        [handle for handle, _ in entries],
        ["x"] * len(entries),
        loc="upper left",
        bbox_to_anchor=(0.004, top),
        ncols=_COLUMNS,
        fontsize=9,
        frameon=False,
        borderaxespad=0,
        columnspacing=1.6,
    )
    legend.set_in_layout(False)
    # Set afterwards: matplotlib leaves out labels that begin with an underscore.
    for text, (_, label) in zip(legend.get_texts(), entries, strict=True):
        text.set_parse_math(False)
        text.set_text(label)


def _short(name: str, longest: int = _LONGEST) -> str:
    name = printable(name)
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
