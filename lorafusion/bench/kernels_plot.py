"""A picture of ``lorafusion bench kernels``: for each case, every way's time over the base's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorafusion.bench import canvas
from lorafusion.bench.linear import FROZEN, OURS

_COLOURS = {OURS: "#2a6f97"}
_OTHERS = ("#89b6d0", "#b8c4ce", "#8d99a6", "#5c6770")


def draw(result: dict[str, Any], path: Path) -> None:
    """Write a PNG of a result, which has at least one case."""
    cases = result["cases"]
    ways = [way for way in result["ways"] if way != FROZEN]
    rest = iter(_OTHERS)
    colours = {way: _COLOURS.get(way) or next(rest) for way in ways}
    figure = canvas.make_figure(8, 1.2 + 0.9 * len(cases))
    panel: Any = figure.subplots()
    height = 0.8 / len(ways)
    for i, case in enumerate(cases):
        ratios = {entry["of"]: entry for entry in case["ratios"] if entry["to"] == FROZEN}
        for j, way in enumerate(ways):
            place = i + (j - (len(ways) - 1) / 2) * height
            value = ratios[way]["median"]
            panel.barh(place, value, height=0.9 * height, color=colours[way])
            panel.text(value, place, f" {value:.2f}", va="center", fontsize=7)
    panel.axvline(1, color="#22303c", lw=1)
    panel.set_yticks(range(len(cases)), [_name(case) for case in cases], fontsize=8)
    panel.invert_yaxis()
    panel.set_xlabel("time, forward and backward, over the frozen base's products alone")
    handles = [panel.barh(0, 0, color=colours[way]) for way in ways]
    figure.legend(
        handles, ways, fontsize=8, loc="outside lower center", ncols=len(ways), frameon=False
    )
    machine = result["machine"]
    panel.set_title(
        f"{machine['gpu'] or machine['cpu']}, medians of {result['rounds']} rounds", fontsize=9
    )
    canvas.save(figure, path)


def _name(case: dict[str, Any]) -> str:
    return (
        f"{case['rows']} x {case['K']} -> {case['N']}\n{case['dtype']}, dropout {case['dropout']:g}"
    )
