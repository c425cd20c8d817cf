"""``lorafusion doctor``: what this machine can do, and what mends what it cannot."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

import lorafusion
from lorafusion.doctor.checks import CHECKS, SELF_TEST
from lorafusion.doctor.finding import Check, Result, run_checks
from lorafusion.doctor.surroundings import Surroundings

CANNOT_TRAIN = 1
STYLES = {"ok": "green", "warning": "yellow", "missing": "red", "optional": "dim"}
SIGNS = {"ok": "✓", "warning": "!", "missing": "✗", "optional": "–"}
NAME_WIDTH = max(len(check.name) for check in (*CHECKS, SELF_TEST))


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Also train two tiny jobs, and compare the losses.")
    ] = False,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder that runs are to be written to.")
    ] = Path("runs"),
) -> None:
    """Look at what this machine can do and what is missing, with the command that mends it.

    Exit code: 0 training can run here, 1 something that it needs is missing.
    """
    checks = (*CHECKS, SELF_TEST) if self_test else CHECKS
    with _progress(checks) as done:
        results = run_checks(checks, Surroundings.here(output), done)
    can_train = not any(result.stops_training for result in results)
    if as_json:
        typer.echo(json.dumps(to_dict(results), indent=2))
    else:
        _show(Console(highlight=False), results)
    if not can_train:
        raise typer.Exit(CANNOT_TRAIN)


def to_dict(results: Sequence[Result]) -> dict[str, Any]:
    """For JSON: keys stay, new ones may come."""
    return {
        "ok": not any(result.stops_training for result in results),
        "version": lorafusion.__version__,
        "checks": [
            {
                "section": result.check.section,
                "name": result.check.name,
                "needed": result.check.needed,
                "status": result.finding.status,
                "found": result.finding.found,
                "means": result.finding.means,
                "fix": result.finding.fix,
            }
            for result in results
        ],
    }


def label(result: Result) -> str:
    """The status as it is shown: what is missing and not needed is ``optional``."""
    optional = result.finding.status == "missing" and not result.check.needed
    return "optional" if optional else result.finding.status


def render(results: Sequence[Result]) -> RenderableType:
    """All findings under their sections, for a terminal."""
    parts: list[RenderableType] = []
    for section in dict.fromkeys(result.check.section for result in results):
        parts.append(Text(section, style="bold"))
        table = Table.grid(padding=(0, 1))
        table.add_column(width=1)
        table.add_column(width=NAME_WIDTH, style="bold cyan")
        table.add_column(overflow="fold")
        for result in results:
            if result.check.section == section:
                kind = label(result)
                sign = Text(SIGNS[kind], style=f"bold {STYLES[kind]}")
                table.add_row(sign, result.check.name, _lines(result))
        parts.append(Padding(table, (0, 0, 1, 2)))
    parts.append(_summary(results))
    return Group(*parts)


def _lines(result: Result) -> Text:
    finding = result.finding
    text = Text(finding.found)
    text.append(f"\n{finding.means}", style="dim")
    if finding.fix:
        text.append("\nto mend: ", style="yellow").append(finding.fix, style="bold")
    return text


def _summary(results: Sequence[Result]) -> Text:
    stopping = [result.check.name for result in results if result.stops_training]
    if stopping:
        return Text(f"Training cannot run here: {', '.join(stopping)}", style="bold red")
    warned = [result.check.name for result in results if result.finding.status == "warning"]
    text = Text("Training can run here", style="bold green")
    return text.append(f"; look at {', '.join(warned)}" if warned else "")


def _show(console: Console, results: Sequence[Result]) -> None:
    if console.is_terminal:
        console.print(render(results))
        return
    for result in results:
        finding = result.finding
        typer.echo(f"{label(result):8}  {result.check.name}: {finding.found}; {finding.means}")
        if finding.fix:
            typer.echo(f"{'':8}  to mend {result.check.name}: {finding.fix}")
    typer.echo(_summary(results).plain)


@contextmanager
def _progress(checks: Sequence[Check]) -> Generator[Callable[[Check], None]]:
    """A spinner on a terminal with what is still being looked at; nothing elsewhere."""
    console = Console(stderr=True, highlight=False)
    waiting = {check.name: None for check in checks}
    lock = threading.Lock()
    with console.status(f"looking at {', '.join(waiting)}") as status:

        def done(check: Check) -> None:
            with lock:
                waiting.pop(check.name, None)
                status.update(f"looking at {', '.join(waiting)}")

        yield done
