"""What ``lorafusion bench`` shows: what runs now, and in the end who was how fast."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from lorafusion.bench.run import Result, Watcher, turns_of
from lorafusion.bench.settings import LIMIT, OURS, WAYS, Settings
from lorafusion.bench.summary import Comparison, LossSummary, Spread
from lorafusion.bench.turn import Turn
from lorafusion.cli import figures


class BenchBoard(Watcher, AbstractContextManager["BenchBoard"]):
    """A bar on a terminal; lines elsewhere, one when a turn begins and one when it ends."""

    def __init__(self, settings: Settings, console: Console) -> None:
        self._console = console
        self._rounds = settings.rounds
        self._count = len(list(turns_of(settings)))
        self._number = 0
        self._bar = Progress(
            BarColumn(20),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=self._count)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def status(self, text: str) -> None:
        """What is being prepared."""
        self._say(text)

    def begin(self, turn: Turn, number: int) -> None:
        """Which turn, and that its base is being loaded."""
        self._number = number
        self._bar.update(self._task, completed=number - 1)
        self._say(f"{self._where(turn)} · starting")

    def step(self, turn: Turn) -> None:
        """The step, and how fast it goes; off a terminal the turn's end says it."""
        last = turn.steps[-1]
        text = f"{self._where(turn)} · {last.job} step {last.step} · {_rate(turn)}"
        self._bar.update(self._task, description=text)

    def end(self, turn: Turn) -> None:
        """How fast it went, and whether something else ran beside it."""
        if self._console.is_terminal:
            self._bar.update(self._task, completed=self._number)
        else:
            self._console.print(
                f"{self._where(turn)} · {_rate(turn)} · {figures.seconds(turn.seconds)}"
            )
        if turn.noise is not None and turn.noise.busy:
            self._console.print(f"note: {_busy(turn)}", style="yellow")

    def _where(self, turn: Turn) -> str:
        return (
            f"turn {self._number}/{self._count} · round {turn.round}/{self._rounds} · "
            f"dropout {turn.dropout:g} · {turn.way}"
        )

    def _say(self, text: str) -> None:
        if self._console.is_terminal:
            self._bar.update(self._task, description=text)
        else:
            self._console.print(text)


def show_result(console: Console, result: Result) -> None:
    """Tables of speeds and losses for each dropout, and the ratios that matter."""
    for comparison in result.comparisons:
        console.print(f"\ndropout {comparison.dropout:g}", style="bold")
        console.print(_speeds(comparison))
        console.print(_losses(comparison))
        for name, way in (("strongest", comparison.strongest), ("weakest", comparison.weakest)):
            if way is not None:
                ratio = _spread(comparison.ratio(way))
                console.print(f"against the {name} baseline, {way}: {ratio}")
        share = comparison.share
        if share is not None:
            console.print(f"of what the base's matrix products allow: {_share(share)}")
    busy = [turn for turn in result.turns if turn.noise is not None and turn.noise.busy]
    if busy:
        console.print(
            f"\nwarning: in {len(busy)} of {len(result.turns)} turns other processes kept cores "
            "busy. The ratios are to be doubted, and the speeds are too low: run it again on a "
            "quiet machine.",
            style="yellow",
        )


def _speeds(comparison: Comparison) -> Table:
    table = _table("way")
    for name in ("tokens/s", "min..max", "ours is", "of limit", "peak memory"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    for way in comparison.ways:
        speed = way.tokens_per_s
        table.add_row(
            Text(way.way, style="bold cyan" if way.way == OURS else ""),
            figures.per_second(speed.median),
            f"{speed.low:,.0f}..{speed.high:,.0f}",
            figures.NOTHING if way.ratio is None else _spread(way.ratio),
            figures.NOTHING if way.of_limit is None else f"{way.of_limit.median:.0%}",
            figures.NOTHING if way.peak_rss_mb is None else f"{way.peak_rss_mb / 1e3:.1f} GB",
            WAYS[way.way],
        )
    return table


def _losses(comparison: Comparison) -> Table:
    """Mean training loss by job and way; where the batches are the same, also the difference."""
    table = _table("mean loss")
    others = [way.way for way in comparison.ways if way.way not in (OURS, LIMIT)]
    compared = any(loss.worst_step is not None for loss in comparison.losses)
    for name in (OURS, *others):
        table.add_column(name, justify="right", no_wrap=True)
    if compared:
        table.add_column("worst step", justify="right", no_wrap=True)
    by_job: dict[str, list[LossSummary]] = {}
    for loss in comparison.losses:
        by_job.setdefault(loss.job, []).append(loss)
    for job, losses in by_job.items():
        worst = [loss.worst_step for loss in losses if loss.worst_step is not None]
        cells = [figures.loss(losses[0].ours), *(figures.loss(loss.theirs) for loss in losses)]
        if compared:
            cells.append(f"{max(worst):.1e}" if worst else figures.NOTHING)
        table.add_row(job, *cells)
    return table


def _table(first: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(first, no_wrap=True)
    return table


def _spread(ratio: Spread) -> str:
    return f"{ratio.median:.2f}× ({ratio.low:.2f}..{ratio.high:.2f})"


def _share(share: Spread) -> str:
    return f"{share.median:.0%} ({share.low:.0%}..{share.high:.0%})"


def _rate(turn: Turn) -> str:
    return f"{figures.per_second(turn.tokens_per_s)} tokens/s"


def _busy(turn: Turn) -> str:
    assert turn.noise is not None
    assert turn.noise.other_cores is not None
    return f"other processes kept {turn.noise.other_cores:.1f} cores busy during this turn"
