"""A picture of the pipeline's idle time beside the simulator's, and of its speed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorafusion.bench import canvas


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Write a PNG of a result of :func:`lorafusion.bench.pipeline.measure`."""
    figure = canvas.make_figure(8.6, 3.4)
    idle, speed = figure.subplots(1, 2)
    _draw_idle(idle, result["sleeping"])
    if result["jobs"]:
        _draw_speed(speed, result["jobs"])
    for panel in (idle, speed):
        canvas.tidy(panel, "y")
    figure.suptitle(f"{result['machine']['cpu']}, {result['machine']['cores']} cores", fontsize=9)
    canvas.save(figure, path)


def _draw_idle(panel: Any, studies: Any) -> None:
    names: list[str] = []
    for study in studies:
        for kind, what in (("bubble", "all"), ("bubble_without_ramp", "without ramp")):
            at = len(names)
            names.append(f"{study['stages']} stages,\n{what}")
            panel.bar(at - 0.2, 100 * study["predicted"][kind], 0.36, color=canvas.REFERENCE)
            panel.bar(at + 0.2, 100 * study["median"][kind], 0.36, color=canvas.OURS)
            turns = [100 * turn[kind] for turn in study["turns"]]
            panel.plot([at + 0.2] * len(turns), turns, ".", color="black", ms=4)
    panel.set_xticks(range(len(names)), names, fontsize=7)
    panel.set_ylabel("idle time, %")
    panel.set_title("simulated (grey) and measured, stages that sleep", fontsize=9)


def _draw_speed(panel: Any, jobs: Mapping[str, Any]) -> None:
    ways = jobs["ways"]
    colours = (canvas.OURS, canvas.REFERENCE, canvas.PALE)
    for at, (way, colour) in enumerate(zip(ways.values(), colours, strict=True)):
        panel.bar(at, way["median"]["tokens_per_s"], 0.6, color=colour)
        rates = [turn["tokens_per_s"] for turn in way["turns"]]
        panel.plot([at] * len(rates), rates, ".", color="black", ms=4)
    panel.set_xticks(range(len(ways)), list(ways), fontsize=8)
    panel.set_ylabel("real tokens per second")
    panel.set_title(f"{jobs['jobs']} jobs, {jobs['stages']} stages that compute", fontsize=9)
