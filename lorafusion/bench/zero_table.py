"""The table of the ZeRO-3 benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from lorafusion.bench.pages import measured_on, table

__all__ = ["markdown"]


def markdown(result: Mapping[str, Any]) -> str:
    """A row a way, in MB of 10^6 bytes and as ratios of the first way's time."""
    ways: dict[str, list[Mapping[str, Any]]] = {}
    for turn in result["turns"]:
        ways.setdefault(turn["way"], []).append(turn)
    first = next(iter(ways.values()))
    head = ["way", "base", "peak of a rank", "time", "range"]
    rows = [
        [
            name,
            _mb(max(turn["kinds"]["base"] for turn in turns)),
            _mb(max(turn["peak"] for turn in turns)),
            *_times(turns, first),
        ]
        for name, turns in ways.items()
    ]
    rounds = len(first)
    about = (
        f"torch {result['versions']['torch']}; MB of the rank that has most; time is that of "
        f"training, as the median ratio to the first way in the same of {rounds} rounds"
    )
    return "\n".join([measured_on(result, about), "", *table(head, rows)])


def _times(
    turns: Sequence[Mapping[str, Any]], first: Sequence[Mapping[str, Any]]
) -> tuple[str, str]:
    ratios = [one["seconds"] / other["seconds"] for one, other in zip(turns, first, strict=True)]
    return f"{median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"


def _mb(number: float) -> str:
    return f"{number / 1e6:,.0f}"
