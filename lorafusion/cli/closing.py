"""What a run leaves on the screen: a table of the jobs, what failed and why, answers, totals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorafusion.cli import figures
from lorafusion.cli.display import STYLES, UNBOUNDED, Row, new_table
from lorafusion.cli.sweep_table import show_sweeps
from lorafusion.training.result import Generation, JobResult, RunResult
from lorafusion.training.stage_times import StageTimes

# Characters of a prompt or an answer that are shown.
SHOWN_TEXT = 300
HASH_PREFIX = 12
# Control characters of the data would move the cursor.
_CONTROL = dict.fromkeys([*range(32), *range(127, 160)], " ")


def show_result(console: Console, result: RunResult, rows: Mapping[str, Row]) -> None:
    """Print the closing part of a run."""
    table = closing_table(result.jobs, with_folder=True)
    console.print()
    if _natural_width(console, table) <= console.width:
        console.print(table)
    else:
        console.print(closing_table(result.jobs, with_folder=False))
        _show_folders(console, result.jobs)
    show_sweeps(console, result.rankings(), rest="all are in result.json and report.html")
    _show_reasons(console, result.jobs, rows)
    for job in result.jobs:
        if job.generation is not None:
            show_generation(console, job.name, job.generation)
    show_stages(console, result.stages)
    console.print()
    console.print(totals(result))


def closing_table(jobs: Sequence[JobResult], *, with_folder: bool) -> Table:
    """One row a job: what it did, and where its adapter is."""
    table = new_table()
    table.add_column("state", no_wrap=True)
    table.add_column("steps", justify="right", no_wrap=True)
    table.add_column("held-out loss", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("training loss", no_wrap=True)
    table.add_column("tokens", justify="right", no_wrap=True)
    if with_folder:
        table.add_column("adapter", no_wrap=True)
    for job in jobs:
        change = figures.change(job.eval_before, job.eval_after)
        cells = [
            Text(job.name),
            Text(job.state, style=STYLES.get(job.state, "")),
            Text(f"{job.steps}/{job.total_steps}" if job.total_steps else figures.NOTHING),
            _from_to(job.eval_before, job.eval_after),
            Text(change, style={"-": "green", "+": "red"}.get(change[: len(change) > 1], "")),
            _from_to(job.loss_first, job.loss_last),
            Text(f"{job.tokens:,}"),
        ]
        folder = [Text(job.adapter_dir or figures.NOTHING)] if with_folder else []
        table.add_row(*cells, *folder)
    return table


def show_stages(console: Console, stages: Sequence[StageTimes]) -> None:
    """Print where the time of each stage of a pipeline went; nothing for a single stage."""
    if len(stages) > 1:
        console.print()
        console.print(stages_table(stages))


def stages_table(stages: Sequence[StageTimes]) -> Table:
    """One row a stage, 78 columns up to 27 hours; shares are of the stage's time in this process.

    ``r1 s0`` is the first stage of the second replica. ``other`` is what it sent, planned, and what
    else is in no span.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    heads = "stage|layers|busy|bubble|no ramp|wait\nbefore|wait\nbehind|wait\nplan|other|memory"
    for head in heads.split("|"):
        table.add_column(head, justify="right", vertical="bottom", no_wrap=True)
    several = any(stage.replica for stage in stages)
    for stage in stages:
        waits = (stage.wait_before_s, stage.wait_after_s, stage.wait_plan_s, stage.other_s)
        table.add_row(
            f"r{stage.replica} s{stage.stage}" if several else str(stage.stage),
            _layers(stage.layers),
            f"{_short(stage.busy_s)} s",
            f"{stage.bubble:.1%}",
            f"{stage.bubble_without_ramp:.1%}" if stage.full_s else figures.NOTHING,
            *(f"{wait / stage.wall_s:.1%}" if wait else figures.NOTHING for wait in waits),
            f"{_short(stage.peak_rss_mb / 1000)} GB",
        )
    return table


def show_generation(console: Console, name: str, generation: Generation) -> None:
    """Print one prompt and its answers."""
    console.print()
    console.print(Text(f"{name}: a held-out prompt", style="bold"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in (
        ("prompt", generation.prompt),
        ("expected", generation.expected),
        ("before", generation.before),
        ("after", generation.after),
    ):
        table.add_row(label, Text(shorten(text), style="green" if label == "after" else ""))
    console.print(table)


def totals(result: RunResult) -> Text:
    """Speed, time, memory, and that the base is as it was."""
    parts = [
        f"{figures.per_second(result.tokens_per_s)} tokens/s",
        f"{figures.seconds(result.wall_s)} in all, {figures.seconds(result.training_s)} training",
        f"peak memory {result.peak_rss_mb / 1000:.2f} GB",
        f"base unchanged ({result.base_sha256[:HASH_PREFIX]})",
    ]
    return Text(" · ".join(parts))


def shorten(text: str) -> str:
    """One line of at most ``SHOWN_TEXT`` characters, with the middle left out."""
    line = " ".join(text.translate(_CONTROL).split()) or "(nothing)"
    if len(line) <= SHOWN_TEXT:
        return line
    half = (SHOWN_TEXT - 3) // 2
    return f"{line[:half]} … {line[-half:]}"


def _short(value: float) -> str:
    """Three digits, or more before the point."""
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _layers(layers: tuple[int, int] | None) -> str:
    """Such as ``0-7``, or ``8`` for a single one."""
    if layers is None:
        return figures.NOTHING
    first, behind = layers
    return f"{first}-{behind - 1}" if behind - first > 1 else str(first)


def _natural_width(console: Console, table: Table) -> int:
    return console.measure(table, options=console.options.update(width=UNBOUNDED)).maximum


def _from_to(first: float | None, last: float | None) -> Text:
    if first is None and last is None:
        return Text(figures.NOTHING)
    return Text(f"{figures.loss(first)} → {figures.loss(last)}")


def _show_folders(console: Console, jobs: Sequence[JobResult]) -> None:
    console.print()
    for job in jobs:
        if job.adapter_dir is not None:
            console.print(f"adapter of {job.name}: {job.adapter_dir}", soft_wrap=True)


def _show_reasons(console: Console, jobs: Sequence[JobResult], rows: Mapping[str, Row]) -> None:
    names: dict[tuple[str, str], list[str]] = {}
    for job in jobs:
        if job.reason:
            names.setdefault((job.state, job.reason), []).append(job.name)
    lines = [
        Text(f"{', '.join(who)} {state}: {reason}", style=STYLES.get(state, ""))
        for (state, reason), who in names.items()
    ]
    lines += [
        Text(f"{row.name}: steps skipped as loss or gradient was not finite: {row.skipped}")
        for row in rows.values()
        if row.skipped
    ]
    if lines:
        console.print()
    for line in lines:
        console.print(line)
