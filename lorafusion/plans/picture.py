"""The frame of a PNG: title, panels below one another, legends, all in inches."""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorafusion.errors import LorafusionError
from lorafusion.files import write_bytes_atomic
from lorafusion.plans import colours
from lorafusion.plans.quantities import count, printable
from lorafusion.plans.summary import PlanSummary

__all__ = ["REMEDY", "Picture", "lanes_height", "need_matplotlib"]

REMEDY = "pip install 'lorafusion[bench]'"
_DPI = 150
# Inches: the title, a lane, a panel's title and axis, a line of the legend.
_WIDTH, _HEADER, _LANE, _AXES, _LINE = 14.0, 0.68, 0.34, 0.75, 0.22
_COLUMNS, _LISTED, _LONGEST, _LONGEST_TITLE = 6, 18, 24, 90
_LIGHT, _DARK = "#c3cbd3", "#66717c"


def need_matplotlib(path: Path) -> None:
    """Look whether pictures can be drawn.

    Raises:
        LorafusionError: matplotlib is not installed.
    """
    try:
        importlib.import_module("matplotlib.backends.backend_agg")
    except ImportError as error:
        raise LorafusionError(
            f"{path}: a picture of the plan is drawn with matplotlib, which cannot be imported "
            f"({error}). {REMEDY} brings it; the HTML page and the trace need nothing more."
        ) from error


def lanes_height(lanes: int) -> float:
    """Inches of a panel of so many lanes."""
    return max(0.6, lanes * _LANE)


class Picture:
    """A picture of a plan or of a run; ``panels`` are to be drawn on."""

    def __init__(self, summary: PlanSummary, heights: Sequence[float]) -> None:
        """``heights`` are those of the panels, in inches."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self._summary = summary
        footer = _LINE * (2 + -(-min(len(summary.jobs), _LISTED) // _COLUMNS))
        self._height = _HEADER + sum(heights) + _AXES * len(heights) + footer
        self._legend_top = (footer - 0.05) / self._height
        self._figure: Any = Figure(figsize=(_WIDTH, self._height), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(self._figure)
        rest = 1 - (footer + _HEADER) / self._height
        self._figure.get_layout_engine().set(rect=(0.004, footer / self._height, 0.988, rest))
        self.panels: Sequence[Any] = self._figure.subplots(
            len(heights), 1, height_ratios=list(heights)
        )

    def title(self, facts: Sequence[str]) -> None:
        """The summary's title, and a line of facts below it."""
        lines = [
            (0.12, _short(self._summary.title, _LONGEST_TITLE), 14, "bold"),
            (0.40, "  ·  ".join(facts), 9.5, None),
        ]
        for down, text, points, weight in lines:
            self._figure.text(
                0.01,
                1 - down / self._height,
                text,
                va="top",
                fontsize=points,
                fontweight=weight,
                parse_math=False,
            )

    def legends(self, more: Sequence[tuple[Any, str]] = ()) -> None:
        """Below the panels: what blocks and marks mean, ``more`` of them, then the jobs."""
        from matplotlib.patches import Patch

        summary = self._summary
        kinds = [*_kinds(summary), *more]
        _row(self._figure, kinds, self._legend_top, len(kinds))
        jobs = [
            (Patch(color=colours.base(index)), _short(job.name))
            for index, job in enumerate(summary.jobs[:_LISTED])
        ]
        left = len(summary.jobs) - _LISTED
        if left > 0:
            jobs.append((Patch(alpha=0), f"and {count(left, 'more job')}; colours repeat"))
        _row(self._figure, jobs, self._legend_top - _LINE / self._height)

    def save(self, path: Path) -> None:
        """Write the PNG."""
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            # Of a job's name in a script that the font lacks, which is drawn as boxes.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            self._figure.savefig(buffer, format="png")
        write_bytes_atomic(path, buffer.getvalue())


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


def _row(figure: Any, entries: list[tuple[Any, str]], top: float, columns: int = _COLUMNS) -> None:
    legend = figure.legend(
        [handle for handle, _ in entries],
        ["x"] * len(entries),
        loc="upper left",
        bbox_to_anchor=(0.004, top),
        ncols=columns,
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
