"""Pictures of the planner: cases beside other planners, and how time and memory grow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorafusion.bench import canvas
from lorafusion.bench.plan_scale import n_log_n
from lorafusion.bench.plan_table import OTHERS


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Write a PNG of a result of the study ``scale``."""
    sizes = result["sizes"]
    samples = [size["samples"] for size in sizes]
    figure = canvas.make_figure(8.6, 3.6)
    time, memory = figure.subplots(1, 2)
    per_sample = sizes[-1]["plan_s"] / n_log_n(samples[-1])
    time.plot(samples, [per_sample * n_log_n(n) for n in samples], "--", color=canvas.REFERENCE)
    time.plot(samples, [size["plan_s"] for size in sizes], "o-", color=canvas.OURS, ms=4)
    time.plot(samples, [size["window_s"] for size in sizes], "o-", color=canvas.PALE, ms=4)
    names = ("n · log n, through the last", "whole plan", f"first {result['window']} places")
    time.legend(names, fontsize=8, frameon=False)
    time.set_yscale("log")
    time.set_ylabel("seconds, one core")
    memory.plot(
        samples, [size["peak_bytes"] / 1e6 for size in sizes], "o-", color=canvas.OURS, ms=4
    )
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
    canvas.save(figure, path)


def draw_cases(result: Mapping[str, Any], path: Path) -> None:
    """Write a PNG of a result of ``lorafusion bench plan``: places over what is proven, by case."""
    cases = result["cases"]
    ways = {"ours": "lorafusion"} | {name: OTHERS[name] for name in cases[0]["baselines"]}
    colours = (canvas.OURS, canvas.REFERENCE, canvas.PALE, "#c9d3dc")
    figure = canvas.make_figure(8.6, 1.2 + 0.16 * len(cases) * (1 + len(ways)))
    panel = figure.subplots()
    height = 0.8 / len(ways)
    for at, case in enumerate(cases):
        proven = max(case["bound"], case["tight"] or 0)
        for nth, (way, colour) in enumerate(zip(ways, colours, strict=False)):
            reached = case if way == "ours" else case["baselines"][way]
            place, over = at + (nth - (len(ways) - 1) / 2) * height, reached["places"] / proven
            panel.barh(place, over, 0.9 * height, color=colour)
            label = f" {over:.2f}, bubble {reached['bubble']:.1%}"
            panel.text(over, place, label, va="center", fontsize=6)
    panel.axvline(1, color="#22303c", lw=1)
    panel.set_yticks(range(len(cases)), [case["name"] for case in cases], fontsize=7)
    panel.invert_yaxis()
    panel.set_xmargin(0.16)
    panel.set_xlabel("places over those that are proven to be needed")
    handles = [panel.barh(0, 0, color=colour) for colour in colours[: len(ways)]]
    names, place = list(ways.values()), "outside lower center"
    figure.legend(handles, names, fontsize=7, frameon=False, loc=place, ncols=len(ways))
    canvas.tidy(panel, "x")
    canvas.save(figure, path)
