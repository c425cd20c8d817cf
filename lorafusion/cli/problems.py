"""The problems of a job file: blocks on a terminal, lines that editors can follow elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import typer
from rich.console import Console
from rich.markup import escape

from lorafusion.errors import Problem


def show_problems(problems: Sequence[Problem], *, err: bool = False) -> None:
    """Print ``problems`` on stdout, or on stderr if ``err``."""
    console = Console(highlight=False, stderr=err)
    for problem in problems:
        if not console.is_terminal:
            typer.echo(str(problem), err=err)
            continue
        place = f"{problem.file}:{problem.line}"
        console.print(f"[bold]{escape(place)}[/]  [cyan]{escape(problem.where or 'top level')}[/]")
        console.print(f"  [red]found[/]    {escape(problem.found)}")
        console.print(f"  [green]allowed[/]  {escape(problem.allowed)}")
        console.print(f"  [yellow]fix[/]      {escape(problem.fix)}\n")
