"""The planner's figures that need no file: scale, a large model, balance by time.

From the root of a checkout; writes a JSON file (and a plot) for each, and the tables of a page::

    python -m lorafusion.bench.plan_studies scale large balance -o docs/planner -w docs/planner.md
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from lorafusion.bench import plan_balance, plan_large, plan_scale, results

__all__ = ["STUDIES", "Study", "main"]


class Study(StrEnum):
    """What can be measured."""

    SCALE = "scale"
    LARGE = "large"
    BALANCE = "balance"


class _Parts(NamedTuple):
    run: Callable[[], dict[str, Any]]
    markdown: Callable[[Mapping[str, Any]], str]


STUDIES = {
    Study.SCALE: _Parts(plan_scale.study, plan_scale.markdown),
    Study.LARGE: _Parts(plan_large.study, plan_large.markdown),
    Study.BALANCE: _Parts(plan_balance.study, plan_balance.markdown),
}


def main(
    studies: Annotated[list[Study], typer.Argument(help="What to measure.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write the figures into.")
    ] = Path("runs/bench-plan"),
    write: Annotated[
        Path | None, typer.Option("--write", "-w", help="The page to put the tables into.")
    ] = None,
) -> None:
    """Measure, write, and print the tables."""
    for study in studies:
        parts = STUDIES[study]
        found = results.result(study.value, **parts.run())
        results.write(found, output)
        if study is Study.SCALE:
            from lorafusion.bench.plan_plot import draw

            draw(found, output / results.file_name(study.value, "png"))
        if write is not None:
            results.put_into(write, found, parts.markdown)
        typer.echo(f"{parts.markdown(found)}\n")


if __name__ == "__main__":
    typer.run(main)
