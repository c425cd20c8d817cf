"""A picture of how planning time and memory grow with the samples."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorafusion.bench.plan_scale import n_log_n
from lorafusion.files import write_bytes_atomic

_OURS, _REFERENCE, _WINDOW = "#2a6f97", "#8d99a6", "#89b6d0"


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Write a PNG of a result of the study ``scale``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sizes = result["sizes"]
    samples = [size["samples"] for size in sizes]
    figure = Figure(figsize=(8.6, 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    time, memory = figure.subplots(1, 2)
    per_sample = sizes[-1]["plan_s"] / n_log_n(samples[-1])
    time.plot(samples, [per_sample * n_log_n(n) for n in samples], "--", color=_REFERENCE)
    time.plot(samples, [size["plan_s"] for size in sizes], "o-", color=_OURS, ms=4)
    time.plot(samples, [size["window_s"] for size in sizes], "o-", color=_WINDOW, ms=4)
    names = ("n · log n, through the last", "whole plan", f"first {result['window']} places")
    time.legend(names, fontsize=8, frameon=False)
    time.set_yscale("log")
    time.set_ylabel("seconds, one core")
    memory.plot(samples, [size["peak_bytes"] / 1e6 for size in sizes], "o-", color=_OURS, ms=4)
    memory.set_ylabel("peak memory of the process, MB")
    memory.set_ylim(0)
    for panel in (time, memory):
        panel.set_xscale("log")
        panel.set_xlabel("samples of all jobs")
        panel.grid(color="#e3e8ec", which="major")
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{result['jobs']} jobs, {result['stages']} stages, {result['machine']['cpu']}", fontsize=9
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_bytes_atomic(path, buffer.getvalue())
