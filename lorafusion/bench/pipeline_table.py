"""The tables of the pipeline's benchmark, as docs/pipeline.md shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorafusion.bench.pages import measured_on, table
from lorafusion.bench.pipeline import spread

__all__ = ["MARK", "markdown"]

MARK = "pipeline: bench"
"""The name of the marks that a page holds the tables between."""

_WAYS = {
    "together": "together, no flush",
    "flush": "one after another, a flush a batch",
    "deterministic": "together, deterministic",
}


def markdown(result: Mapping[str, Any]) -> str:
    """Both tables, each with a line that says what it holds."""
    machine = result["machine"]
    lines = [measured_on(result, f"{machine['cores']} cores, torch {result['versions']['torch']}")]
    if result["sleeping"]:
        lines += ["", *_sleeping(result["sleeping"])]
    if result["jobs"]:
        lines += ["", *_jobs(result["jobs"])]
    return "\n".join(lines)


def _sleeping(studies: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ["stages", "places", "ms a place", "simulated bubble", "measured", "off, points"]
    head += ["simulated without ramp", "measured", "off, points", "other load, cores"]
    rows: list[list[str]] = []
    for study in studies:
        cells = [str(study["stages"]), str(study["places"]), f"{study['place_s'] * 1e3:.0f}"]
        for name in ("bubble", "bubble_without_ramp"):
            predicted, measured = study["predicted"][name], study["median"][name]
            least, most = spread(study["turns"], name)
            cells += [
                f"{predicted:.1%}",
                f"{measured:.1%} ({least:.1%} to {most:.1%})",
                f"{100 * (measured - predicted):+.1f}",
            ]
        rows.append([*cells, _cores(study)])
    return table(head, rows, left=0)


def _jobs(study: Mapping[str, Any]) -> list[str]:
    head = ["way", "places", "no-ops", "tokens/s", "of which the least and most", "bubble"]
    head += ["together over it", "rounds", "predicted"]
    rows: list[list[str]] = []
    for name, way in study["ways"].items():
        least, most = spread(way["turns"], "tokens_per_s")
        row = [_WAYS[name], str(way["places"]), str(way["noops"])]
        row += [f"{way['median']['tokens_per_s']:,.0f}", f"{least:,.0f} to {most:,.0f}"]
        rows.append([*row, f"{way['median']['bubble']:.1%}", *_ratio(study, name)])
    return table(head, rows)


def _ratio(study: Mapping[str, Any], way: str) -> list[str]:
    found = study["together_over"].get(way)
    if found is None:
        return ["1", "", ""]
    rounds, predicted = found["rounds"], found["predicted"]
    return [
        f"{found['measured']:.2f}",
        f"{min(rounds):.2f} to {max(rounds):.2f}",
        "-" if predicted is None else f"{predicted:.2f}",
    ]


def _cores(study: Mapping[str, Any]) -> str:
    cores = study["noise"]["other_cores"]
    return "-" if cores is None else f"{cores:.1f}"
