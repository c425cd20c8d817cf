"""The default cost model beside LoRAFusion's published figures on H100s: nothing is fitted.

From the root of a checkout::

    python -m lorafusion.bench.what_if -o docs/what-if -w docs/what-if.md
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lorafusion.bench import results
from lorafusion.bench.pages import measured_on, table
from lorafusion.bench.plan_bases import base_shape
from lorafusion.bench.plan_mixes import Mix, MixJob, make_queues
from lorafusion.planner.cost import Counts
from lorafusion.planner.default_cost import Setup
from lorafusion.planner.devices import find_device
from lorafusion.planner.machines import Machines
from lorafusion.planner.part_costs import layer_cost
from lorafusion.planner.what_if import Layout, try_layout

__all__ = ["DATA", "LAYERS_MS", "RATES", "SCALING", "layer_cells", "main", "markdown", "rate_cells"]

SOURCE = "Zhu et al. 2025, arXiv:2510.00206; figures of CentML/lorafusion, commit c48d7fd"

LAYERS_MS = {
    "Llama-3.1-8B": (4.16, 9.08),
    "Qwen2.5-32B": (8.42, 17.22),
    "Llama-3.1-70B": (13.55, 27.36),
}
"""Its simulator's profile: one layer at 4,096 tokens, milliseconds forward, and with backward."""

DATA = ("XSum", "CNNDM", "WikiSum", "Mixed", "Het")
RATES = {
    "Llama-3.1-8B": (1, 8, False, (14875, 14595, 13920, 14404, 14158)),
    "Qwen2.5-32B": (2, 8, True, (4969, 4973, 4947, 5121, 4955)),
    "Llama-3.1-70B": (4, 16, True, (4893, 5183, 5074, 5115, 5136)),
}
"""Its end-to-end figure: devices, samples a step of each of four jobs, recomputation, and tokens
per second on each of ``DATA``."""

SCALING = {8: (32, 9937), 16: (64, 18907)}
"""Its scaling of the 70B on Mixed over replicas of 4 stages: devices -> samples a step, tokens per
second. (Its figures of "job scaling" are multiples of one run, and not used.)"""

_SOURCES = {"XSum": "xsum", "CNNDM": "cnn_dailymail", "WikiSum": "wikisum"}
_LONGEST, _RANK, _CAPACITY, _PLACES = 4096, 16, 8192, 60
_STUDY = "what-if"


def main(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write the figures into.")
    ] = Path("runs/bench-what-if"),
    write: Annotated[
        Path | None, typer.Option("--write", "-w", help="The page to put the table into.")
    ] = None,
) -> None:
    """Predict, write, and print the tables."""
    cells = {"layers": layer_cells(), "rates": rate_cells()}
    found = results.result(_STUDY, source=SOURCE, **cells)
    results.write(found, output)
    if write is not None:
        results.put_into(write, found, markdown)
    typer.echo(markdown(found))


def layer_cells() -> list[dict[str, Any]]:
    """One layer of each base: 4,096 tokens of one sample, rank 16."""
    counts = Counts(4096, 4096**2, 4096, 1, 4096 * _RANK)
    cells: list[dict[str, Any]] = []
    for base, published in LAYERS_MS.items():
        layer = layer_cost(base_shape(base), find_device("h100"), Setup())
        ours = (layer.forward(counts) * 1e3, layer.seconds(counts) * 1e3)
        cells.append({"base": base, "published_ms": published, "ours_ms": ours})
    return cells


def rate_cells() -> list[dict[str, Any]]:
    """Tokens per second of every base on all data, then the 70B on more devices."""
    cells = [
        _rate_cell(base, devices, batch, again, data, published)
        for base, (devices, batch, again, rates) in RATES.items()
        for data, published in zip(DATA, rates, strict=True)
    ]
    for devices, (batch, published) in SCALING.items():
        cells.append(_rate_cell("Llama-3.1-70B", devices, batch, True, "Mixed", published))
    return cells


def _rate_cell(
    base: str, devices: int, batch: int, recompute: bool, data: str, published: float
) -> dict[str, Any]:
    stages = min(devices, 4)
    layout = Layout(stages, devices // stages, recompute)
    machines = Machines(find_device("h100"), max(1, devices // 8), min(devices, 8))
    queues = make_queues(_mix(data, batch), stages=4, places=_PLACES * devices)
    found = try_layout(queues, base_shape(base), machines, layout)
    return {
        "base": base,
        "devices": devices,
        "stages": stages,
        "data": data,
        "published": published,
        "ours": found.tokens_per_s,
        "bubble": found.bubble,
        "capacity_tokens": found.capacity_tokens,
        "refused": found.refused,
    }


def _mix(data: str, batch: int) -> Mix:
    """Four jobs on one data set, or on three and all of them mixed (Het)."""
    every = tuple(_SOURCES.values())
    one_each = {
        "Mixed": (every,) * 4,
        "Het": (*((source,) for source in every), every),
    }
    jobs = one_each.get(data) or ((_SOURCES[data],),) * 4
    return Mix(
        f"{data} {batch}",
        tuple(MixJob(sources, batch, _RANK) for sources in jobs),
        capacity_tokens=_CAPACITY,
        longest=_LONGEST,
    )


def markdown(result: Mapping[str, Any]) -> str:
    """Two tables: layers, and tokens per second."""
    layers = [
        [
            cell["base"],
            *(
                text
                for theirs, ours in zip(cell["published_ms"], cell["ours_ms"], strict=True)
                for text in (f"{theirs:.2f}", f"{ours:.2f}", f"{ours / theirs - 1:+.1%}")
            ),
        ]
        for cell in result["layers"]
    ]
    rates = [
        [
            cell["base"],
            str(cell["devices"]),
            cell["data"],
            f"{cell['published']:,}",
            f"{cell['ours']:,.0f}",
            f"{cell['ours'] / cell['published'] - 1:+.1%}",
            f"{cell['bubble']:.1%}",
            f"{cell['capacity_tokens']:,}",
        ]
        for cell in result["rates"]
    ]
    head = ["one layer", *("forward, ms", "ours", "error", "and backward, ms", "ours", "error")]
    rate_head = ["base", "H100s", "data", "tokens/s", "ours", "error", "our bubble", "our capacity"]
    about = f"published: {result['source']}"
    return "\n".join(
        [measured_on(result, about), "", *table(head, layers), "", *table(rate_head, rates)]
    )


if __name__ == "__main__":
    typer.run(main)
