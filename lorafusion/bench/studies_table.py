"""The tables of the studies, as docs/performance.md shows them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from lorafusion.bench.pages import measured_on, table

__all__ = ["markdown"]

Row = Mapping[str, Any]


def markdown(result: Row) -> str:
    """The cases' speeds and peaks, and the ratios beside what is asked of them."""
    known = [turn["other_cores"] for turn in result["turns"] if turn["other_cores"] is not None]
    about = (
        f"torch {result['versions']['torch']}, {result['base']}, {result['dtype']}; rounds: "
        f"{result['rounds']}; other processes kept at most {max(known, default=0.0):.1f} cores busy"
    )
    lines = [result["about"], "", measured_on(result, about), "", *_cases(result["turns"]), ""]
    return "\n".join([*lines, *_ratios(result["ratios"])])


def _cases(turns: Sequence[Row]) -> list[str]:
    rows: list[list[str]] = []
    for case, way in dict.fromkeys((turn["case"], turn["way"]) for turn in turns):
        here = [turn for turn in turns if (turn["case"], turn["way"]) == (case, way)]
        speeds = [turn["tokens_per_s"] for turn in here]
        peaks = [turn["peak_rss_mb"] or 0.0 for turn in here]
        spread = f"{statistics.median(speeds):,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f})"
        tokens, peak = f"{here[0]['tokens']:,}", f"{statistics.median(peaks) / 1e3:.2f}"
        rows.append([case, f"`{way}`", tokens, spread, peak])
    return table(["case", "way", "tokens", "tokens/s", "peak memory, GB"], rows, left=2)


def _ratios(ratios: Sequence[Row]) -> list[str]:
    rows: list[list[str]] = []
    for ratio in ratios:
        found, bound = ratio["rounds"], ratio["bound"]
        middle = statistics.median(found)
        sign = "at most" if ratio["memory"] else "at least"
        held = bound is None or (middle <= bound if ratio["memory"] else middle >= bound)
        asked = "" if bound is None else f"{sign} {bound:.2f}{'' if held else ': missed'}"
        row = [ratio["name"], f"**{middle:.2f}**", f"{min(found):.2f} to {max(found):.2f}", asked]
        rows.append(row)
    return table(["ratio", "median", "of which", "asked for"], rows)
