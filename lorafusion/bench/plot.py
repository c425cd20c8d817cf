"""A picture of a benchmark: a panel per dropout, a bar per way, a dot per round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorafusion.bench import canvas
from lorafusion.bench.run import Result
from lorafusion.bench.settings import LIMIT, OURS
from lorafusion.bench.summary import Comparison

_OTHER_COLOUR, _DOT_COLOUR = "#b8c4ce", "#22303c"
_COLOURS = {OURS: "#2a6f97", LIMIT: "#e6eaee"}
_PANEL_INCHES = (4.6, 4.7)
# The title needs as much, however few panels there are.
_LEAST_WIDTH = 6.8
# Room above the tallest bar or dot, for its label.
_HEADROOM = 1.16


def draw(result: Result, path: Path) -> None:
    """Write a PNG of ``result``, which holds at least one comparison."""
    comparisons = result.comparisons
    width, height = _PANEL_INCHES
    size = (max(_LEAST_WIDTH, width * len(comparisons)), height)
    figure = canvas.make_figure(*size)
    panels = figure.subplots(1, len(comparisons), sharey=True, squeeze=False)[0]
    top = max(turn.tokens_per_s for turn in result.turns) * _HEADROOM
    for panel, comparison in zip(panels, comparisons, strict=True):
        _draw_panel(panel, result, comparison)
        panel.set_ylim(0, top)
    panels[0].set_ylabel("real tokens per second")
    figure.suptitle(_title(result), fontsize=11, fontweight="bold")
    figure.supxlabel(_caption(result), fontsize=7.5, color="#55606a")
    canvas.save(figure, path)


def _draw_panel(panel: Any, result: Result, comparison: Comparison) -> None:
    for place, way in enumerate(comparison.ways):
        dots = [
            turn.tokens_per_s
            for turn in result.turns
            if turn.way == way.way and turn.dropout == comparison.dropout
        ]
        colour = _COLOURS.get(way.way, _OTHER_COLOUR)
        panel.bar(place, way.tokens_per_s.median, width=0.64, color=colour, zorder=2)
        # Side by side: rounds that went alike would hide one another.
        places = [place + 0.1 * (i - (len(dots) - 1) / 2) for i in range(len(dots))]
        panel.scatter(places, dots, s=16, color=_DOT_COLOUR, edgecolor="white", lw=0.6, zorder=3)
        label = f"{way.tokens_per_s.median:,.0f}"
        if way.ratio is not None:
            label += f"\nours {way.ratio.median:.2f}×"
        elif way.of_limit is not None:
            label += f"\n{way.of_limit.median:.0%} of limit"
        height = max(way.tokens_per_s.median, *dots)
        panel.annotate(
            label, (place, height), (0, 5), textcoords="offset points", ha="center", fontsize=8.5
        )
    names = [way.way.replace("-", "\n") for way in comparison.ways]
    panel.set_xticks(range(len(names)), names)
    panel.set_title(f"dropout {comparison.dropout:g}", fontsize=10)
    panel.grid(axis="y", color="#e3e8ec", zorder=0)
    panel.tick_params(length=0)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)


def _title(result: Result) -> str:
    base = Path(result.settings.spec.base_model).name
    jobs = _count(len(result.jobs), "job")
    return f"{jobs} on {base}, {result.settings.spec.dtype}: together, or one after another"


def _caption(result: Result) -> str:
    machine, settings = result.machine, result.settings
    tokens = sum(job.tokens for job in result.jobs)
    return (
        f"bars: medians, dots: {_count(settings.rounds, 'round')} of {tokens:,} tokens   ·   "
        f"{machine['cpu']}, {_count(settings.spec.threads or 1, 'thread')}"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
