"""The table of ahead-of-time compiled kernels, as docs/kernels.md shows it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from lorafusion.bench.pages import row
from lorafusion.kernels.aot import KB, Outcome, Report, Request, default_requests
from lorafusion.kernels.launch_configs import LOSS_OPS, SHARED_OPS, LaunchConfig

MARKS = "compiled ahead of time"
SHARED_MARKS = "compiled ahead of time, shared inputs"
LOSS_MARKS = "compiled ahead of time, loss"
"""The names of the tables' marks in a page."""
_HEAD = ("kernel", "for", "tile", "warps, stages")


def requests() -> dict[str, list[Request]]:
    """What is compiled for each table, by its mark."""
    return {
        MARKS: default_requests(),
        SHARED_MARKS: default_requests(ops=SHARED_OPS),
        LOSS_MARKS: default_requests(ops=LOSS_OPS, ranks=(16,)),
    }


def markdown(outcomes: Sequence[Outcome]) -> str:
    """A table for each dtype: a row a kernel, target and way to load; columns for the ranks."""
    lines = [f"By triton {version('triton')}."]
    for dtype in dict.fromkeys(outcome.request.dtype for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.request.dtype == dtype]
        chunks = sorted({outcome.request.chunk for outcome in mine})
        head = (*_HEAD, *(f"{_ranks(chunk)}: registers, shared" for chunk in chunks), "products")
        lines += ["", f"**{dtype}**", "", row(head), row(["---"] * len(head))]
        rows: dict[tuple[str, str, LaunchConfig], dict[int, Outcome]] = {}
        for outcome in mine:
            request = outcome.request
            key = (request.op, request.target, request.config)
            rows.setdefault(key, {})[request.chunk] = outcome
        lines += [
            row((*_names(next(iter(cells.values())).request), *_cells(cells, chunks)))
            for cells in rows.values()
        ]
    problems = [problem for outcome in outcomes for problem in outcome.problems]
    spills = "Nothing spills, and every limit is kept." if not problems else "Problems:"
    return "\n".join([*lines, "", spills, *(f"- {problem}" for problem in problems)])


def _names(request: Request) -> tuple[str, ...]:
    config = request.config
    sizes = [size for size in (config.BM, config.BN, config.BK) if size]
    tile = " x ".join(map(str, sizes)) + (f" of {config.span}" if config.span else "")
    op = f"{request.op}, descriptors" if config.tma else request.op
    return op, request.target, tile, f"{config.warps}, {config.stages}"


def _cells(found: dict[int, Outcome], chunks: Sequence[int]) -> list[str]:
    mains = [_main(found[chunk]) if chunk in found else None for chunk in chunks]
    products = [f"{name} {n}" for main in mains if main for name, n in main.products.items()]
    return [*map(_cell, mains), "; ".join(dict.fromkeys(products)) or "none"]


def _main(outcome: Outcome) -> Report | None:
    return next((report for report in outcome.reports if report.main), None)


def _cell(report: Report | None) -> str:
    if report is None:
        return "-"
    spilled = f", **{report.spilled} B spilled**" if report.spilled else ""
    return f"{report.registers}, {report.shared / KB:.0f} KB{spilled}"


def _ranks(chunk: int) -> str:
    return f"ranks to {chunk}" if chunk < 64 else "ranks above 32"
