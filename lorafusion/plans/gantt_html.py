"""A plan and its simulation as one HTML page that needs no network: summary, strip, lanes, jobs."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from lorafusion.files import write_text_atomic
from lorafusion.planner.plan import Plan
from lorafusion.planner.simulate import Simulation
from lorafusion.plans import colours
from lorafusion.plans.excerpt import Budget, cut
from lorafusion.plans.gantt_data import page_data
from lorafusion.plans.quantities import count
from lorafusion.plans.summary import JobSummary, PlanSummary

__all__ = ["Content", "page", "render", "write"]

SCRIPTS = ("gantt_model.js", "gantt_draw.js", "gantt_view.js")
LISTED = 500
"""Jobs in the table and the legend."""

# Bytes of the data: an action took 10, a segment 24 in pages of 6,000 places. The rest of a page
# (tables, strip, scripts) stays under 1 MB.
_BUDGET = Budget(places=100_000, lanes=128, size=3.5e6, per_action=10, per_segment=24)
_LEFT_OUT = "The lanes show {}. The figures and the strip are of the whole plan."
_REPEAT = f" Colours repeat after {len(colours.PALETTE)} jobs."


def write(path: Path, plan: Plan, simulation: Simulation, summary: PlanSummary) -> None:
    """Write the page."""
    write_text_atomic(path, page(plan, simulation, summary))


def page(plan: Plan, simulation: Simulation, summary: PlanSummary) -> str:
    """The page, at most 5 MB: of a long plan it draws the first places, and says so.

    Args:
        plan: The plan.
        simulation: Of this plan.
        summary: Of both.
    """
    excerpt = cut(plan, simulation, _BUDGET)
    return render(
        Content(
            summary=summary,
            figures=summary.figures(),
            data=page_data(plan, simulation, summary, excerpt),
            remark="" if excerpt.whole else _LEFT_OUT.format(excerpt.remark(plan)),
        )
    )


@dataclass(frozen=True)
class Content:
    """What a page shows.

    Attributes:
        summary: Its title, jobs and kinds of places.
        figures: Rows of (what, value, remark); a remark may be empty.
        data: What the scripts read.
        remark: On what is left out.
        hint: On what the lanes are, in front of how to use them.
        kinds: HTML, more entries of the legend.
        sections: HTML, more sections behind the drawing.
    """

    summary: PlanSummary
    figures: Sequence[tuple[str, str, str]]
    data: dict[str, Any]
    remark: str = ""
    hint: str = "Below it, a lane per stage"
    kinds: tuple[str, ...] = ()
    sections: str = ""


def render(content: Content) -> str:
    """A page of its own."""
    summary = content.summary
    style = _asset("gantt.css") + _job_colours()
    script = "\n".join(_asset(name) for name in SCRIPTS)
    more = len(summary.jobs) - LISTED
    fields = {
        "title": escape(summary.title),
        "lead": f"{count(len(summary.jobs), 'job')} on {summary.grid}",
        "style": style,
        "script": script,
        # Nothing else on the page may run or load, whatever a job's name holds.
        "style_hash": _source_hash(style),
        "script_hash": _source_hash(script),
        "figures": "\n".join(_figure(*row) for row in content.figures),
        "remark": _note(content.remark) if content.remark else "",
        "hint": escape(content.hint),
        "repeat": _REPEAT if len(summary.jobs) > len(colours.PALETTE) else "",
        "kinds": "\n".join([*_kinds(summary), *content.kinds]),
        "legend": "\n".join(_legend(i, job) for i, job in enumerate(summary.jobs[:LISTED])),
        "sections": content.sections,
        "jobs": "\n".join(_row(i, job) for i, job in enumerate(summary.jobs[:LISTED])),
        "jobs_remark": _note(f"and {count(more, 'more job')}") if more > 0 else "",
        "data": _embedded(content.data),
    }
    return Template(_asset("gantt.html")).substitute(fields)


def _asset(name: str) -> str:
    return files("lorafusion.plans").joinpath(name).read_text(encoding="utf-8")


def _source_hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _embedded(data: dict[str, Any]) -> str:
    """JSON that ends no script element, whatever the names hold."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _job_colours() -> str:
    """Classes ``c0``, ``c1`` and so on."""
    rules = [
        f".c{i} {{ background: linear-gradient(90deg, {colours.forward(i)} 50%, "
        f"{colours.backward(i)} 50%); }}"
        for i in range(len(colours.PALETTE))
    ]
    return "\n".join([*rules, ""])


def _figure(what: str, value: str, remark: str) -> str:
    more = f"<dd>{escape(remark)}</dd>" if remark else ""
    return f"<div><dt>{escape(what)}</dt><dd>{escape(value)}</dd>{more}</div>"


def _note(text: str) -> str:
    return f'<p class="note">{escape(text.strip())}</p>'


def _swatch(index: int) -> str:
    return f'<i class="swatch c{index % len(colours.PALETTE)}"></i>'


def _kinds(summary: PlanSummary) -> Iterator[str]:
    """The legend of what blocks and marks mean, of those that this plan has."""
    yield '<span><i class="swatch pair"></i>forward, backward</span>'
    if summary.evals:
        yield '<span><i class="swatch eval"></i>eval (forward only)</span>'
    if summary.steps:
        yield '<span><i class="swatch step"></i>optimizer step</span>'
    if summary.noops:
        yield '<span><i class="swatch noop"></i>no-op</span>'


def _legend(index: int, job: JobSummary) -> str:
    name = escape(job.name)
    return (
        f'<button type="button" data-job="{index}" aria-pressed="false" title="{name}">'
        f"{_swatch(index)}<b>{name}</b></button>"
    )


def _row(index: int, job: JobSummary) -> str:
    alone = " <small>planned alone: company gains it nothing</small>" if job.alone else ""
    evals = f" <small>+ {count(job.evals, 'eval')}</small>" if job.evals else ""
    cells = (
        f"{_swatch(index)}{escape(job.name)}{alone}",
        f"{job.steps:,}{evals}",
        *(f"{number:,}" for number in (job.samples, job.tokens, job.first, job.last)),
    )
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
