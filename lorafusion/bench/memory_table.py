"""The memory benchmark's table and plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorafusion.bench import canvas
from lorafusion.bench.pages import measured_on, table

__all__ = ["AIM", "draw", "error", "line", "markdown"]

AIM = 0.15
"""How far an estimate may be off."""

_COLOURS = ("#2a6f97", "#d0743c", "#5b8c5a")


def error(cell: Mapping[str, Any]) -> float:
    """Estimate over the measured peak, less 1."""
    return sum(cell["kinds"].values()) / cell["measured"]["peak"] - 1


def without_runtime(cell: Mapping[str, Any]) -> float:
    """The same without what the process holds before the base is loaded, of either."""
    kinds, measured = cell["kinds"], cell["measured"]
    estimate = sum(kinds.values()) - kinds["runtime"]
    return estimate / (measured["peak"] - measured["runtime"]) - 1


def line(cell: Mapping[str, Any]) -> str:
    """A cell on one line."""
    peak, estimate = cell["measured"]["peak"] / 1e6, sum(cell["kinds"].values()) / 1e6
    return (
        f"{cell['base']}, {cell['capacity']} tokens: {estimate:,.0f} MB estimated, {peak:,.0f} "
        f"measured ({error(cell):+.1%}, {without_runtime(cell):+.1%} without the runtime)"
    )


def markdown(result: Mapping[str, Any]) -> str:
    """The table: a row a cell, a column a kind, in MB of 10^6 bytes."""
    cells = sorted(result["cells"], key=lambda cell: cell["base"])
    kinds = list(cells[0]["kinds"])
    head = ["base", "tokens", *kinds, "estimate", "measured", "error", "without runtime"]
    rows = [
        [
            cell["base"],
            f"{cell['capacity']:,}",
            *(_mb(cell["kinds"][kind]) for kind in kinds),
            _mb(sum(cell["kinds"].values())),
            _mb(cell["measured"]["peak"]),
            _signed(error(cell)),
            _signed(without_runtime(cell)),
        ]
        for cell in cells
    ]
    versions = result["versions"]
    about = (
        f"torch {versions['torch']}, transformers {versions['transformers']}; peak resident set, "
        "MB; off by more than 15% in bold"
    )
    return "\n".join([measured_on(result, about), "", *table(head, rows)])


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Write a PNG: measured peaks and estimates over the capacity, a panel a base."""
    names = list(dict.fromkeys(cell["base"] for cell in result["cells"]))
    figure = canvas.make_figure(9.6, 3.3)
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for name, panel, colour in zip(names, panels, _COLOURS, strict=False):
        cells = [cell for cell in result["cells"] if cell["base"] == name]
        tokens = [cell["capacity"] for cell in cells]
        peaks = [cell["measured"]["peak"] / 1e9 for cell in cells]
        estimates = [sum(cell["kinds"].values()) / 1e9 for cell in cells]
        low, high = ([peak * factor for peak in peaks] for factor in (1 - AIM, 1 + AIM))
        panel.fill_between(tokens, low, high, color=colour, alpha=0.15, lw=0)
        panel.plot(tokens, peaks, "o-", color=colour, ms=4)
        panel.plot(tokens, estimates, "x--", color="#333333", ms=5)
        panel.set_title(name, fontsize=9)
        panel.set_xlabel("tokens of a microbatch")
        panel.set_xlim(0)
        panel.set_ylim(0)
        canvas.tidy(panel)
    panels[0].set_ylabel("peak resident set, GB")
    panels[0].legend(["within 15%", "measured", "estimate"], fontsize=8, frameon=False)
    canvas.save(figure, path)


def _mb(number: float) -> str:
    return f"{number / 1e6:,.0f}"


def _signed(share: float) -> str:
    return f"**{share:+.1%}**" if abs(share) > AIM else f"{share:+.1%}"
