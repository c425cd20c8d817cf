"""A picture of the pipeline's idle time beside the simulator's, and of its speed."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorafusion.files import write_bytes_atomic

_OURS, _REFERENCE, _THIRD = "#2a6f97", "#8d99a6", "#89b6d0"


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Write a PNG of a result of :func:`lorafusion.bench.pipeline.measure`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 3.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    idle, speed = figure.subplots(1, 2)
    _draw_idle(idle, result["sleeping"])
    if result["jobs"]:
        _draw_speed(speed, result["jobs"])
    for panel in (idle, speed):
        panel.grid(color="#e3e8ec", axis="y")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{result['machine']['cpu']}, {result['machine']['cores']} cores", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(path, buffer.getvalue())


def _draw_idle(panel: Any, studies: Any) -> None:
    names: list[str] = []
    for study in studies:
        for kind, what in (("bubble", "all"), ("bubble_without_ramp", "without ramp")):
            at = len(names)
            names.append(f"{study['stages']} stages,\n{what}")
            panel.bar(at - 0.2, 100 * study["predicted"][kind], 0.36, color=_REFERENCE)
            panel.bar(at + 0.2, 100 * study["median"][kind], 0.36, color=_OURS)
            turns = [100 * turn[kind] for turn in study["turns"]]
            panel.plot([at + 0.2] * len(turns), turns, ".", color="black", ms=4)
    panel.set_xticks(range(len(names)), names, fontsize=7)
    panel.set_ylabel("idle time, %")
    panel.set_title("simulated (grey) and measured, stages that sleep", fontsize=9)


def _draw_speed(panel: Any, jobs: Mapping[str, Any]) -> None:
    ways = jobs["ways"]
    colours = (_OURS, _REFERENCE, _THIRD)
    for at, (way, colour) in enumerate(zip(ways.values(), colours, strict=True)):
        panel.bar(at, way["median"]["tokens_per_s"], 0.6, color=colour)
        rates = [turn["tokens_per_s"] for turn in way["turns"]]
        panel.plot([at] * len(rates), rates, ".", color="black", ms=4)
    panel.set_xticks(range(len(ways)), list(ways), fontsize=8)
    panel.set_ylabel("real tokens per second")
    panel.set_title(f"{jobs['jobs']} jobs, {jobs['stages']} stages that compute", fontsize=9)
