"""The tables of the planner's benchmark on cases, as docs/planner.md shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorafusion.bench.pages import measured_on, table

__all__ = ["OTHERS", "cases"]

OTHERS = {
    "lorafusion_greedy": "LoRAFusion's greedy",
    "mlora": "mLoRA's order",
    "one_after_another": "one job after another",
}
"""Baseline -> how a table calls it."""
_VERDICTS = {True: "yes", False: "**no**", None: "-"}

Row = Mapping[str, Any]


def cases(result: Row) -> str:
    """Two tables: the cases that LoRAFusion's own planner was run on, and all of them."""
    rows: Sequence[Row] = result["cases"]
    against = [found for found in rows if found["reference"]]
    rounds = result["rounds"]
    lines = [measured_on(result, f"seconds: medians of {rounds}")]
    if against:
        lines += ["", *_against(against)]
    return "\n".join([*lines, "", *_all(rows)])


def _against(rows: Sequence[Row]) -> list[str]:
    modes = list(rows[0]["reference"])
    head = ["case", "at least", "our places", "bubble"]
    head += [f"its {mode}: {name}" for mode in modes for name in ("places", "bubble")]
    lines = [
        [
            found["name"],
            str(found["bound"]),
            str(found["places"]),
            f"{found['bubble']:.3f}",
            *(cell for mode in modes for cell in _reached(found["reference"][mode])),
        ]
        for found in rows
    ]
    return table(head, lines)


def _all(rows: Sequence[Row]) -> list[str]:
    others = [name for name in OTHERS if rows and name in rows[0]["baselines"]]
    head = ["case", "jobs", "S", "all tokens fill", "longest job", "proven", "places", "over it"]
    head += ["no-ops", "bubble", "seconds", "aim kept"]
    head += [f"{OTHERS[name]}: places, bubble" for name in others]
    lines = [
        [
            found["name"],
            *(str(found[name]) for name in ("jobs", "stages", "by_load", "by_chain")),
            str(proven := max(found["bound"], found["tight"] or 0)),
            str(found["places"]),
            f"{found['places'] / proven:.3f}",
            str(found["noops"]),
            f"{found['bubble']:.3f}",
            f"{found['seconds']:.2f}",
            _VERDICTS[found["holds"]],
            *(", ".join(_reached(found["baselines"][name])) for name in others),
        ]
        for found in rows
    ]
    return table(head, lines)


def _reached(found: Row) -> tuple[str, str]:
    return str(found["places"]), f"{found['bubble']:.3f}"
