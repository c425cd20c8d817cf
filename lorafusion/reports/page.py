"""The report as one HTML page that needs no network; but for pointing, no scripts either."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from lorafusion.plans.quantities import count, duration, percent, size
from lorafusion.reports.curves import Curve, curve, points_for
from lorafusion.reports.document import document, section
from lorafusion.reports.job_section import job_section
from lorafusion.reports.loss_section import LISTED, loss_section
from lorafusion.reports.memory_section import memory_section
from lorafusion.reports.plan_section import plan_section
from lorafusion.reports.reading import TRACE, Reading
from lorafusion.reports.sweep_section import rankings_of, sweep_section
from lorafusion.reports.tables import table
from lorafusion.reports.time_section import operations_section, time_section

__all__ = ["page"]

_PIPELINE = "pipeline.html"


def page(reading: Reading, figures: Mapping[str, Any]) -> str:
    """The page, at most 5 MB: curves of many jobs or steps are thinned out.

    Args:
        reading: The run.
        figures: Of :func:`lorafusion.reports.figures.figures`.
    """
    most = points_for(len(reading.jobs))
    curves = [curve(job, most) for job in reading.jobs]
    headline = "".join(_figure(*row) for row in _headline(figures))
    return document(
        figures["title"],
        _lead(figures),
        "\n".join(
            [f'<dl class="figures">\n{headline}\n</dl>', *_sections(reading, figures, curves)]
        ),
        missing=figures["missing"],
        data=[one.to_dict() for one in curves if one.steps or one.evals][:LISTED],
    )


def _sections(reading: Reading, figures: Mapping[str, Any], curves: list[Curve]) -> Iterator[str]:
    yield section("jobs", "Jobs", job_section(figures["jobs"]))
    sweeps = rankings_of(figures["jobs"])
    if sweeps:
        yield section("sweeps", "Sweeps", sweep_section(sweeps))
    yield section("losses", "Losses", loss_section(curves))
    if figures["stages"]:
        text = time_section(figures["stages"], figures["mfu"])
        yield section("time", "Where the time of each stage went", text)
    if figures["operations"]:
        text = operations_section(figures["operations"])
        yield section("operations", "Time by kind of operation", text)
    if any(reading.memory):
        text = memory_section(reading.memory, figures["memory"])
        yield section("memory", "Memory by kind", text)
    if reading.halves is not None:
        there = (reading.folder / TRACE / _PIPELINE).exists()
        link = f"{TRACE}/{_PIPELINE}" if there else ""
        text = plan_section(reading.halves, figures["pipeline"], link)
        yield section("plan", "Planned and measured", text)
    if figures["mfu"]:
        yield section("mfu", "Operations and MFU", _mfu(figures["mfu"]))
    yield section("run", "The run", _run(figures))


def _lead(figures: Mapping[str, Any]) -> str:
    run = figures["run"]
    told = [count(len(figures["jobs"]), "job")]
    if run["base_model"]:
        told.append(f"on {str(run['base_model']).rstrip('/').rpartition('/')[2]} in {run['dtype']}")
    if run["stages"]:
        told.append(f"{count(run['stages'], 'stage')} on {_device(run['device'])}")
    if run["started"]:
        told.append(f"session begun {run['started'][:16].replace('T', ' ')} UTC")
    if not figures["ended"]:
        told.append("not ended: it goes on, or was ended from outside")
    return ", ".join(told)


def _device(device: object) -> str:
    return str(device["name"]) if isinstance(device, dict) else str(device)  # pyright: ignore[reportUnknownArgumentType]


def _headline(figures: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    speed, mfu, fill, pipe = (figures[k] for k in ("speed", "mfu", "fill", "pipeline"))
    rate = speed["tokens_per_s"]
    yield "real tokens/s", "–" if rate is None else _rate(rate), "no padding; evals not counted"
    yield "tokens trained", f"{speed['tokens']:,}", _seconds(speed["training_s"], "of training")
    if mfu and mfu["mfu"] is not None:
        yield "MFU", percent(mfu["mfu"]), "frozen weights: 4·N a token; see below"
    if fill and fill["mean"] is not None:
        yield "fill", percent(fill["mean"]), f"of {fill['capacity']:,}, mean load of microbatches"
    if pipe:
        yield "bubble", percent(pipe["bubble"]), f"planned {percent(pipe['planned_bubble'])}"
        yield "waits", percent(pipe["waits"] or 0.0), "of the time of all stages"
    peaks = [peak["peak_bytes"] for peak in figures["memory"] if peak["peak_bytes"]]
    if peaks:
        yield "memory", size(max(peaks)), "fullest stage, as sampled"
    if speed["wall_s"]:
        yield "in all", duration(speed["wall_s"], "s"), "with loading and evals"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _seconds(value: float | None, what: str) -> str:
    return "" if value is None else f"in {duration(value, 's')} {what}"


def _mfu(mfu: Mapping[str, Any]) -> str:
    whole = mfu["operations"] or 1.0
    rows = [
        [kind, f"{value:.3e}", percent(value / whole)] for kind, value in mfu["by_kind"].items()
    ]
    peak = mfu["peak_flops"]
    told = "not known" if not peak else f"{peak / 1e9:,.1f} GFLOP/s a stage"
    return "\n".join(
        [
            f'<p class="hint">{escape(mfu["formula"])}</p>',
            f"<p>Peak: {told} ({escape(str(mfu['peak_source']))}). "
            f"{mfu['operations']:.3e} operations in {duration(mfu['seconds'], 's')}.</p>",
            table(["operations", "number", "share"], rows),
        ]
    )


def _run(figures: Mapping[str, Any]) -> str:
    rows: list[list[str]] = []
    for name, value in figures["run"].items():
        if isinstance(value, dict):
            rows += [[f"{name}: {key}", _plain(item)] for key, item in value.items()]  # pyright: ignore[reportUnknownVariableType]
        elif value is not None:
            rows.append([name.replace("_", " "), _plain(value)])
    rows.append(["tokens/s from", figures["speed"]["source"]])
    return table(["what", "value"], rows, folded="Settings, machine, versions")


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _figure(what: str, value: str, remark: str) -> str:
    more = f"<dd>{escape(remark)}</dd>" if remark else ""
    return f"<div><dt>{escape(what)}</dt><dd>{escape(value)}</dd>{more}</div>"
