"""The job service: what a full store takes, how soon a job joins, what share a short one gets.

From the root of a checkout, on a quiet machine, with the demo's model and data fetched::

    python -m lorafusion.bench.service_study -o docs/service -w docs/service.md
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lorafusion.bench import pages, results
from lorafusion.bench.pages import measured_on, table
from lorafusion.bench.service_runs import Served, measure_joins, measure_share
from lorafusion.bench.service_store import measure_store
from lorafusion.files import home

__all__ = ["MARK", "main", "markdown"]

MARK = "bench: service"
BASE = "SmolLM2-135M-Instruct"
_NAMES = {
    "status": "look at the newest 20",
    "list": "look at all",
    "submit": "submit a file of 10",
    "command status": "`lorafusion status`, the whole command",
    "command submit": "`lorafusion submit FILE`, the whole command",
    "command --version": "`lorafusion --version`, which opens no store",
}


def markdown(result: Mapping[str, Any]) -> str:
    """The tables of a result."""
    store, joins, share = result["store"], result["joins"], result["share"]
    rows = [
        [_NAMES[name], f"{took['median'] * 1e3:,.0f}", f"{took['most'] * 1e3:,.0f}"]
        for name, took in store["took"].items()
    ]
    waits = ", ".join(f"{seconds:.1f}" for seconds in joins["seconds"])
    return "\n".join(
        [
            measured_on(result, f"torch {result['versions']['torch']}"),
            "",
            f"A store (SQLite) of {store['jobs']:,} jobs, {store['residents']} of them with a "
            f"server that reports of them twice a second; {store['repeats']} times each:",
            "",
            *table(["what", "ms, median", "ms, most"], rows),
            "",
            f"On {result['base']} ({result['dtype']}), beside {joins['beside']} jobs that train, a "
            f"job began to train {waits} s after `submit` had stored it (most: "
            f"**{max(joins['seconds']):.1f} s**).",
            "",
            f"A job of {share['steps']} steps took {share['alone_s']:.0f} s alone and "
            f"{share['beside_s']:.0f} s beside one of {share['long_steps']:,} steps: "
            f"**{share['beside_s'] / share['alone_s']:.2f} times** as long.",
        ]
    )


def main(
    base: Annotated[
        Path | None, typer.Option(help="The base model; by default the demo's.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=50, help="In the store.")] = 1000,
    repeats: Annotated[int, typer.Option(min=1, help="Times of each look.")] = 20,
    steps: Annotated[int, typer.Option(min=2, help="Of the short job.")] = 100,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write the figures into.")
    ] = Path("runs/bench-service"),
    write: Annotated[
        Path | None, typer.Option("--write", "-w", help="The page to put the tables into.")
    ] = None,
) -> None:
    """Measure, write, and print the tables."""
    base = base or home() / "models" / BASE
    with tempfile.TemporaryDirectory(prefix="lorafusion-service-") as name:
        folder = Path(name)
        (folder / "store").mkdir()
        residents = jobs // 20
        store = measure_store(folder / "store", jobs=jobs, residents=residents, repeats=repeats)
        served = Served(base, folder)
        joins = measure_joins(served)
        share = measure_share(served, steps=steps)
    found = results.result(
        "service", base=base.name, dtype=served.dtype, store=store, joins=joins, share=share
    )
    results.write(found, output)
    if write is not None:
        pages.put_into(write, MARK, markdown(found))
    typer.echo(markdown(found))


if __name__ == "__main__":
    typer.run(main)
