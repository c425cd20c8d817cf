"""Where benchmarks draw: a matplotlib figure without a window, and the PNG that becomes of it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from lorafusion.bench.settings import REMEDY
from lorafusion.errors import BenchError
from lorafusion.files import write_bytes_atomic

__all__ = ["OURS", "PALE", "REFERENCE", "make_figure", "save", "tidy"]

OURS, REFERENCE, PALE = "#2a6f97", "#8d99a6", "#89b6d0"
"""Colours: what is ours, what it is held against, a third."""


def make_figure(width: float, height: float) -> Any:
    """A figure of so many inches.

    Raises:
        BenchError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BenchError(f"a plot needs matplotlib ({error}): {REMEDY}") from error
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tidy(panel: Any, axis: str = "both") -> None:
    """A pale grid behind what is drawn, and no frame at the top and right."""
    panel.grid(color="#e3e8ec", axis=axis)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def save(figure: Any, path: Path) -> None:
    """Write a PNG; its folder is made."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(path, buffer.getvalue())
