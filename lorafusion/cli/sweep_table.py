"""A sweep on the screen: its jobs by their losses, the best with a star."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorafusion.cli import figures
from lorafusion.cli.display import STYLES, UNBOUNDED
from lorafusion.jobs.ranking import HELD_OUT, TRAINING, Ranking, Variant, shown

__all__ = ["LISTED", "STAR", "show_sweeps"]

STAR = "★"
LISTED = 50
"""Rows of a table."""
_BEST = "bold green"
_LONG = {HELD_OUT: "held-out loss after training", TRAINING: "training loss of the last step"}


def show_sweeps(console: Console, sweeps: Sequence[Ranking], *, rest: str) -> None:
    """Print a table of each; ``rest`` says where the rows are that are too many."""
    for ranking in sweeps:
        count = len(ranking.rows)
        jobs = "1 job" if count == 1 else f"{count:,} jobs"
        console.print()
        metric = _LONG[ranking.metric]
        console.print(Text(f"sweep {ranking.name}: {jobs} by {metric}", style="bold"))
        table = _table(ranking, with_job=True)
        if console.measure(table, options=console.options.update(width=UNBOUNDED)).maximum > (
            console.width
        ):
            table = _table(ranking, with_job=False)
        console.print(table)
        if count > LISTED:
            console.print(Text(f"{count - LISTED:,} more: {rest}"))
        console.print(Text(_legend(ranking)))


def _table(ranking: Ranking, *, with_job: bool) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", no_wrap=True)
    for field in ranking.fields:
        numbers = all(_is_number(variant.choice.get(field)) for variant in ranking.rows)
        table.add_column(Text(field), justify="right" if numbers else "left", no_wrap=True)
    table.add_column(ranking.metric, justify="right", no_wrap=True)
    table.add_column("steps", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    if with_job:
        table.add_column("job", no_wrap=True)
    for variant in ranking.rows[:LISTED]:
        cells = _cells(ranking, variant)
        table.add_row(*(cells if with_job else cells[:-1]))
    return table


def _cells(ranking: Ranking, variant: Variant) -> list[Text]:
    best = ranking.is_best(variant)
    style = _BEST if best else ""
    loss = variant.held_out if ranking.metric == HELD_OUT else variant.training
    total = variant.total_steps
    return [
        Text(STAR if best else " ", style=style),
        *(Text(_value(variant, field), style=style) for field in ranking.fields),
        Text(figures.close_loss(loss), style=style),
        Text(f"{variant.steps}/{total}" if total else str(variant.steps)),
        Text(variant.state, style=STYLES.get(variant.state, "")),
        Text(variant.job),
    ]


def _legend(ranking: Ranking) -> str:
    if not ranking.ranked:
        return "none is best: no job that can be used has a finite loss"
    many = len(ranking.best)
    same = "" if many == 1 else f", of {many} jobs that are equal"
    left = len(ranking.others)
    others = f"; without a rank: {left:,}" if left else ""
    return f"{STAR} the lowest {ranking.metric}{same}{others}"


def _value(variant: Variant, field: str) -> str:
    return shown(variant.choice[field]) if field in variant.choice else figures.NOTHING


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
