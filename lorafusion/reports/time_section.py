"""Where the time went: a bar and a row of figures per stage, and by kind of operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lorafusion.plans.quantities import duration, percent
from lorafusion.reports.svg import bar, chart
from lorafusion.reports.tables import legend, table

__all__ = ["PARTS", "operations_section", "time_section"]

PARTS = {
    "forward_s": ("t0", "forward"),
    "backward_s": ("t1", "backward"),
    "step_s": ("t2", "optimizer step"),
    "send_s": ("t3", "send"),
    "wait_before_s": ("t4", "wait: stage before"),
    "wait_behind_s": ("t5", "wait: stage behind"),
    "wait_plan_s": ("t6", "wait: plan"),
    "other_s": ("t7", "planning and other"),
}
_LANE = 34


def time_section(stages: Sequence[Mapping[str, Any]], mfu: Mapping[str, Any] | None) -> str:
    """HTML of all stages."""
    parts: list[str] = []
    for row, stage in enumerate(stages):
        parts.append(f'<text x="0" y="{row * _LANE + 11}">stage {stage["stage"]}</text>')
        whole = sum(stage[name] for name in PARTS) or 1.0
        start = 0.0
        for name, (style, what) in PARTS.items():
            share = stage[name] / whole
            if share > 0:
                told = f"{what}: {duration(stage[name], 's')}, {percent(share)}"
                box = bar(start, share, row * _LANE + 15, 16, f'class="{style}"')
                parts.append(box.replace("/>", f"><title>{escape(told)}</title></rect>"))
            start += share
    label = "Time of each stage by what it did; the table below has the numbers"
    used = {name: entry for name, entry in PARTS.items() if any(s[name] > 0 for s in stages)}
    return "\n".join(
        [
            legend(used.values()),
            chart(len(stages) * _LANE + 2, label, parts),
            _numbers(stages, mfu, used),
        ]
    )


def operations_section(operations: Sequence[Mapping[str, Any]]) -> str:
    """HTML: seconds by kind of operation, of the places that were profiled."""
    return "\n".join(_operations(found) for found in operations)


def _numbers(
    stages: Sequence[Mapping[str, Any]],
    mfu: Mapping[str, Any] | None,
    used: Mapping[str, tuple[str, str]],
) -> str:
    heads = ["stage", *(what for _, what in used.values()), "idle", "idle, planned"]
    heads += ["MFU", "MFU, busy"] if mfu else []
    rows: list[list[str]] = []
    for stage in stages:
        cells = [f"stage {stage['stage']}"]
        cells += [duration(stage[name], "s") if stage[name] else "–" for name in used]
        cells += [percent(stage["idle"]), percent(stage["planned_idle"])]
        if mfu:
            shares = mfu["stages"][stage["stage"]]
            cells += [
                "–" if shares[name] is None else percent(shares[name])
                for name in ("mfu", "mfu_busy")
            ]
        rows.append(cells)
    return table(heads, rows)


def _operations(found: Mapping[str, Any]) -> str:
    entries = sorted(found["operations"], key=lambda entry: -entry["seconds"])
    whole = sum(entry["seconds"] for entry in entries) or 1.0
    first, behind = found["places"]
    rows: list[list[str]] = []
    parts: list[str] = []
    most = max((entry["seconds"] for entry in entries), default=0.0) or 1.0
    for row, entry in enumerate(entries):
        share = entry["seconds"] / whole
        rows.append(
            [entry["name"], duration(entry["seconds"], "s"), percent(share), f"{entry['calls']:,}"]
        )
        told = escape(f"{entry['name']}: {percent(share)}")
        parts.append(f'<text x="0" y="{row * 30 + 11}">{told}</text>')
        parts.append(bar(0, entry["seconds"] / most, row * 30 + 15, 9, 'class="t0"'))
    label = f"Time of stage {found['stage']} by kind of operation; the table has the numbers"
    return (
        f"<h3>Stage {found['stage']} by kind of operation, places {first} to {behind - 1}: "
        f"{duration(found['seconds'], 's')}</h3>\n{chart(len(entries) * 30, label, parts)}\n"
        + table(["operation", "time", "share", "calls"], rows, folded="Table")
    )
