"""``lorafusion bench plan``: what the planner reaches on cases, beside bounds and others."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from lorafusion.bench.plan import Outcome
    from lorafusion.bench.plan_case import Reached

BROKEN = 1
_SHOWN = 20
"""Broken rules of a plan that are listed."""
_WIDTH = 160
_NAMES = {
    "lorafusion_greedy": "as LoRAFusion",
    "mlora": "as mLoRA",
    "one_after_another": "one by one",
}


def bench_plan(
    cases: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Planner cases; without any, two mixes of jobs on 4 and on 8 stages.",
            metavar="[CASE.json...]",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list with the plans, and nothing else.")
    ] = False,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Also plan as LoRAFusion, as mLoRA, one by one.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each case is planned.")] = 1,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write the figures into.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="The page to put the tables into, between its marks.")
    ] = None,
) -> None:
    """Plan cases with tokens as the cost: places, bubble, seconds, beside what others reach.

    With `--output` a plot too. A case is an object with name, stages, capacity_tokens and jobs,
    each of them with name, global_batch_size and lengths. Exit code: 0 planned, 1 a plan breaks a
    rule, 2 bad input.
    """
    from lorafusion.bench import pages, plan_mixes, plan_table, results
    from lorafusion.bench.plan import measure_case
    from lorafusion.bench.plan_case import CaseFile
    from lorafusion.bench.plan_plot import draw_cases

    files = [CaseFile.read(path) for path in cases or ()]  # all, before the first is planned
    if not cases:
        files = [
            CaseFile.of(plan_mixes.make_case(mix, stages=stages, places=60 * stages // 4), {})
            for mix in plan_mixes.MIXES
            for stages in (4, 8)
        ]
    console = Console(highlight=False, stderr=True)
    outcomes = [
        measure_case(file, rounds=rounds, baselines=baselines)
        for file in track(
            files, "planning", console=console, transient=True, disable=not console.is_terminal
        )
    ]
    found = results.result("cases", rounds=rounds, cases=[one.figures() for one in outcomes])
    if output is not None:
        results.write(found, output)
        draw_cases(found, output / results.file_name("cases", "png"))
    if write is not None:
        results.put_into(write, found, plan_table.cases)
    if as_json:
        typer.echo(json.dumps([outcome.record() for outcome in outcomes], allow_nan=False))
    else:
        _show(outcomes)
        typer.echo(f"\n{pages.measured_on(found, f'rounds: {rounds}')}")
    _refuse_broken(outcomes)


def _show(outcomes: Sequence[Outcome]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("case", overflow="fold")
    known = any(outcome.file.reference for outcome in outcomes)
    others = [_NAMES[name] for name in outcomes[0].others]
    names = ["jobs", "S", "places", "at least", "no-ops", "bubble", "seconds"]
    for name in (*names, *(["LoRAFusion's"] if known else []), *others):
        table.add_column(name, justify="right", no_wrap=True)
    for outcome in outcomes:
        file, ours = outcome.file, outcome.ours
        theirs = min(file.reference.values(), key=lambda mode: mode.places, default=None)
        table.add_row(
            Text(file.case.name),
            str(len(file.case.jobs)),
            str(file.case.stages),
            Text(str(ours.places), style="bold yellow" if outcome.holds is False else "bold"),
            str(max(file.bound, file.tight or 0)),
            str(ours.noops),
            f"{ours.bubble:.3f}",
            f"{outcome.seconds:.2f}",
            *([_cell(theirs)] if known else []),
            *map(_cell, outcome.others.values()),
        )
    # Without a terminal rich takes 80 columns, and the names would be cut to pieces.
    width = None if sys.stdout.isatty() else _WIDTH
    Console(highlight=False, width=width).print(table)
    missed = [outcome.file.case.name for outcome in outcomes if outcome.holds is False]
    if missed:
        typer.echo(f"\nshort of the aim: {', '.join(missed)}")


def _cell(reached: Reached | None) -> str:
    return "-" if reached is None else f"{reached.places}, {reached.bubble:.3f}"


def _refuse_broken(outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        for violation in outcome.violations[:_SHOWN]:
            typer.secho(f"{outcome.file.case.name}: {violation}", err=True, fg="red")
    if any(outcome.violations for outcome in outcomes):
        typer.echo("the plan breaks its rules: please report it with the case", err=True)
        raise typer.Exit(BROKEN)
