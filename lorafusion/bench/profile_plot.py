"""A picture of a profile: predicted beside measured microbatches, and speed over the capacity."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorafusion.bench import canvas

_MARK = "#c8553d"
_SECONDS = [base * 10.0**power for power in range(-3, 3) for base in (1, 2, 5)]


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Write a PNG of a result of :mod:`lorafusion.bench.profile_study`."""
    figure = canvas.make_figure(8.6, 3.6)
    fit, sweep = figure.subplots(1, 2)
    _draw_fit(fit, result["probes"])
    _draw_sweep(sweep, result)
    for panel in (fit, sweep):
        canvas.tidy(panel)
    threads = f"{result['threads']} threads of {result['machine']['cpu']}"
    figure.suptitle(f"{result['base']}, {result['dtype']}, {threads}", fontsize=9)
    canvas.save(figure, path)


def _draw_fit(panel: Any, probes: Any) -> None:
    def points(held: bool) -> tuple[list[float], list[float]]:
        some = [probe for probe in probes if probe["held_out"] is held]
        took = [probe["forward_s"] + probe["backward_s"] for probe in some]
        return took, [probe["predicted_s"] for probe in some]

    most = max(max(points(held)[0]) for held in (False, True)) * 1.3
    least = min(min(points(held)[0]) for held in (False, True)) / 1.3
    line = [least, most]
    panel.fill_between(line, [0.9 * x for x in line], [1.1 * x for x in line], color="#e8eef3")
    panel.plot(line, line, "--", color=canvas.REFERENCE, lw=1)
    panel.plot(*points(held=False), "o", color=canvas.REFERENCE, ms=4, label="fitted to")
    panel.plot(*points(held=True), "o", color=canvas.OURS, ms=5, label="held out")
    ticks = [tick for tick in _SECONDS if least <= tick <= most]
    for scale, mark in (
        (panel.set_xscale, panel.set_xticks),
        (panel.set_yscale, panel.set_yticks),
    ):
        scale("log")
        mark(ticks, [f"{tick:g}" for tick in ticks])
    panel.minorticks_off()
    panel.set_xlabel("measured, seconds of a microbatch")
    panel.set_ylabel("predicted")
    panel.legend(fontsize=8, frameon=False)
    panel.set_title("predictions (band: 10%)", fontsize=9)


def _draw_sweep(panel: Any, result: Mapping[str, Any]) -> None:
    turns, medians = result["turns"], result["sweep"]["median"]
    capacities = [int(capacity) for capacity in medians]
    predicted = sorted((int(tokens), rate) for tokens, rate in result["predicted"].items())
    panel.plot(*zip(*predicted, strict=True), "--", color=canvas.REFERENCE, label="predicted")
    panel.plot(capacities, list(medians.values()), "-", color=canvas.OURS, label="measured, median")
    panel.plot(
        [turn["capacity"] for turn in turns],
        [turn["tokens_per_s"] for turn in turns],
        ".",
        color="black",
        ms=4,
    )
    panel.axvline(result["recommended"], color=_MARK, lw=1, label="recommended")
    panel.set_xscale("log", base=2)
    marked = result["recommended"]
    apart = [each for each in capacities if each == marked or not 0.87 < each / marked < 1.15]
    panel.set_xticks(apart, [str(each) for each in apart], fontsize=7)
    panel.set_xlabel("capacity, tokens")
    panel.set_ylabel("real tokens per second")
    panel.set_ylim(0)
    panel.legend(fontsize=8, frameon=False)
    panel.set_title("training the demo's jobs", fontsize=9)
