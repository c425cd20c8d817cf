"""A run as an HTML page: what was planned above what was measured, at one scale of time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lorafusion.plans.excerpt import Budget
from lorafusion.plans.gantt_data import Entry, packed_lane, page_data
from lorafusion.plans.gantt_html import Content, render
from lorafusion.plans.halves import MEASURED, PLANNED, Halves
from lorafusion.plans.measured import Beside
from lorafusion.plans.quantities import duration, percent

__all__ = ["pipeline_page"]

BUDGET = Budget(places=100_000, lanes=64, size=3.5e6, per_action=34, per_segment=24)
"""As of a plan's page; with waits and sends, three actions are ten blocks of both halves."""
_HINT = (
    "Below it, a lane per stage, twice: on top the same places as the schedule alone would have "
    "them, with forwards, backwards, steps and messages as long as they were in this run on "
    "average for their load; below them what each stage did"
)
_KINDS = (
    '<span><i class="swatch wait"></i>waiting</span>',
    '<span><i class="swatch send"></i>sending</span>',
)
# By the beginning of what is waited for; BESIDE in gantt_model.js.
_LETTERS = {"forward": "u", "backward": "d"}
_HEADS = "forward|backward|steps|wait: before|wait: behind|wait: plan|other|idle|idle, planned"


def pipeline_page(halves: Halves) -> str:
    """The page, at most 5 MB: of a long run it draws the first places, and says so."""
    planned, measured = halves.excerpts(BUDGET)
    plan = halves.recording.plan
    longest = halves.longest
    run = replace(halves.run.simulation, makespan_s=longest)
    shown = replace(measured, places=max(planned.places, measured.places))
    data = page_data(plan, run, replace(halves.summary, makespan=longest), shown)
    tick = float(data["tick"])
    lanes = [packed_lane(lane, tick) for lane in planned.lanes]
    for lane in measured.lanes:
        beside = [_entry(entry) for entry in halves.beside(lane.stage, measured.end)]
        lanes.append(packed_lane(replace(lane, replica=1), tick, beside))
    left_out = "" if measured.whole else f"The lanes show {duration(measured.end, 's')}. "
    left_out += "The figures, the strip and the tables are of the whole run." if left_out else ""
    return render(
        Content(
            summary=halves.summary,
            figures=halves.figures(),
            data={**data, "lanes": lanes, "groups": [PLANNED, MEASURED]},
            remark=f"{left_out} {halves.read}".strip(),
            hint=_HINT,
            kinds=_KINDS,
            sections=_stages(halves),
        )
    )


def _entry(beside: Beside) -> Entry:
    letter = "t" if beside.kind == "send" else _LETTERS.get(beside.name.partition(" ")[0], "p")
    return letter, beside.place, beside.start_s, beside.end_s


def _stages(halves: Halves) -> str:
    heads = "".join(f"<th>{head}</th>" for head in ("stage", *_HEADS.split("|")))
    rows: list[str] = []
    for stage, row in enumerate(halves.rows()):
        seconds: list[Any] = [row.forward_s, row.backward_s, row.step_s]
        seconds += [row.before_s, row.after_s, row.plan_s, row.other_s]
        cells = [f"stage {stage}", *(duration(value, "s") if value else "–" for value in seconds)]
        cells += [percent(row.idle), percent(row.planned_idle)]
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return (
        '<section aria-labelledby="stages">\n'
        '<h2 id="stages">Where the time of each stage went</h2>\n'
        f'<div class="table"><table class="wide"><thead><tr>{heads}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + "\n</tbody></table></div>\n</section>"
    )
