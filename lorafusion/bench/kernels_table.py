"""The table of ``lorafusion bench kernels``, as docs/kernels.md shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorafusion.bench.linear import FROZEN, OURS, TORCH
from lorafusion.bench.pages import measured_on, table

__all__ = ["MARK", "markdown"]

MARK = "bench: kernels"


def markdown(result: Mapping[str, Any]) -> str:
    """Others over ours, and all over the base's products alone; medians and ranges."""
    machine = result["machine"]
    threads = machine["threads"]
    about = (
        f"torch {result['versions']['torch']}, {machine['gpu'] or 'CPU'}, {threads} "
        f"thread{'' if threads == 1 else 's'}; rounds: {result['rounds']}"
    )
    ways = list(result["ways"])
    pairs = [(way, OURS) for way in ways if way not in (OURS, TORCH, FROZEN)]
    pairs += [(way, FROZEN) for way in ways if way != FROZEN]
    head = ["rows, K, N", "base", "dropout", *(f"{one} / {other}" for one, other in pairs)]
    rows: list[list[str]] = []
    for case in result["cases"]:
        found = {(ratio["of"], ratio["to"]): ratio for ratio in case["ratios"]}
        row = [f"{case['rows']}, {case['K']}, {case['N']}", case["dtype"], f"{case['dropout']:g}"]
        rows.append([*row, *(_ratio(found.get(pair)) for pair in pairs)])
    return "\n".join([measured_on(result, about), "", *table(head, rows)])


def _ratio(found: Mapping[str, Any] | None) -> str:
    return (
        "-" if found is None else f"{found['median']:.2f} ({found['low']:.2f}..{found['high']:.2f})"
    )
