"""What a run shows while it trains: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lorafusion.cli import figures
from lorafusion.data.dataset import DatasetReport
from lorafusion.training.events import Events
from lorafusion.training.job import StepResult
from lorafusion.training.result import JobResult

STYLES = {"running": "cyan", "succeeded": "green", "failed": "bold red", "paused": "yellow"}
REFRESHES_PER_S = 4
BAR_WIDTH = 12
# Columns of the terminal from which there is room for bars, and for both held-out losses.
WIDE, WIDER = 90, 110
# Lines of the live view beside the jobs' own: header, rule, "more", status, and one to spare.
OTHER_LINES = 6
# Where no terminal says how wide it is, lines are as long as they need to be.
UNBOUNDED = 10_000


@dataclass
class Row:
    """What is known of one job."""

    name: str
    state: str = "waiting"
    step: int = 0
    total_steps: int = 0
    last: StepResult | None = None
    eval_before: float | None = None
    eval_last: float | None = None
    tokens_per_s: float | None = None
    tokens: int = 0
    skipped: int = 0

    @property
    def ended(self) -> bool:
        """Whether no step will follow."""
        return self.state in ("succeeded", "failed", "paused")


class Board(Events, AbstractContextManager["Board"]):
    """Keeps what is known of each job; subclasses show it."""

    def __init__(self, names: Sequence[str], console: Console) -> None:
        """``names`` in the order of the job file."""
        self.console = console
        self.rows = {name: Row(name) for name in names}
        self.doing = "starting"
        self.started = time.monotonic()
        self.tokens_per_s: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to clear away."""

    def status(self, text: str) -> None:
        """What is being done now."""
        self.doing = text

    def ready(self, name: str, report: DatasetReport, *, done: int, total_steps: int) -> None:
        """The job can begin; it may have come while others train."""
        row = self.rows.setdefault(name, Row(name))
        row.state, row.step, row.total_steps = "running", done, total_steps
        self.doing = "training"

    def step(self, name: str, result: StepResult, *, tokens_per_s: float) -> None:
        """One more step of a job."""
        row = self.rows[name]
        row.step, row.last, row.tokens_per_s = result.step, result, tokens_per_s
        row.tokens += result.tokens
        row.skipped += result.skipped
        if tokens_per_s > 0:
            # A job's rate is its tokens over the seconds of training so far, which all jobs share.
            total = sum(each.tokens for each in self.rows.values())
            self.tokens_per_s = total * tokens_per_s / row.tokens

    def evaluated(self, name: str, step: int, loss: float) -> None:
        """A held-out loss."""
        row = self.rows[name]
        row.eval_last = loss
        if step == 0:
            row.eval_before = loss

    def ended(self, result: JobResult) -> None:
        """The job's last state."""
        row = self.rows.setdefault(result.name, Row(result.name))
        row.state, row.step = result.state, result.steps
        row.total_steps = result.total_steps or row.total_steps


class PlainBoard(Board):
    """A line for everything that happens, for logs."""

    def _say(self, name: str, *parts: str) -> None:
        width = max(map(len, self.rows))
        self.console.print(f"{name:{width}}  " + "  ".join(parts))

    def status(self, text: str) -> None:
        """A line of its own."""
        super().status(text)
        self.console.print(text)

    def note(self, text: str) -> None:
        """A line of its own."""
        self.console.print(f"note: {text}")

    def ready(self, name: str, report: DatasetReport, *, done: int, total_steps: int) -> None:
        """What the job trains on."""
        super().ready(name, report, done=done, total_steps=total_steps)
        resumed = [f"resumed after step {done}"] if done else []
        self._say(name, describe(report), f"{total_steps} steps", *resumed)

    def step(self, name: str, result: StepResult, *, tokens_per_s: float) -> None:
        """The step's figures."""
        super().step(name, result, tokens_per_s=tokens_per_s)
        self._say(
            name,
            f"step {result.step}/{self.rows[name].total_steps}",
            f"loss {figures.loss(result.loss)}",
            f"lr {figures.rate(result.learning_rate)}",
            f"grad {figures.norm(result.grad_norm)}",
            f"{figures.per_second(tokens_per_s)} tok/s",
            *(["SKIPPED: not finite"] if result.skipped else []),
        )

    def evaluated(self, name: str, step: int, loss: float) -> None:
        """The loss and when."""
        super().evaluated(name, step, loss)
        when = f"after step {step}" if step else "before training"
        self._say(name, f"held-out loss {figures.loss(loss)} {when}")

    def ended(self, result: JobResult) -> None:
        """How it ended, and why."""
        super().ended(result)
        self._say(result.name, result.state, *([result.reason] if result.reason else []))


class LiveBoard(Board):
    """One table that is drawn anew as jobs move, and is gone at the end."""

    def __init__(self, names: Sequence[str], console: Console) -> None:
        super().__init__(names, console)
        self._live = Live(
            console=console,
            get_renderable=self.render,
            refresh_per_second=REFRESHES_PER_S,
            transient=True,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def note(self, text: str) -> None:
        """A line above the table."""
        self.console.print(f"note: {text}")

    def ready(self, name: str, report: DatasetReport, *, done: int, total_steps: int) -> None:
        """Rows that were cut or dropped are said above the table."""
        super().ready(name, report, done=done, total_steps=total_steps)
        if report.cut or report.dropped:
            self.console.print(f"{name}: {describe(report)}")

    def render(self) -> RenderableType:
        """The table of the jobs, the running ones first where not all fit, and the status line."""
        room = max(1, self.console.height - OTHER_LINES)
        shown = list(self.rows.values())
        if len(shown) > room:
            shown = sorted(shown, key=lambda row: row.ended)[:room]
        parts: list[RenderableType] = [jobs_table(shown, self.console.width)]
        if hidden := len(self.rows) - len(shown):
            ended = sum(row.ended for row in self.rows.values())
            parts.append(Text(f"… and {hidden} more; {ended} of {len(self.rows)} have ended"))
        return Group(*parts, self._status_line())

    def _status_line(self) -> Text:
        parts = [self.doing, figures.seconds(time.monotonic() - self.started)]
        if self.tokens_per_s is not None:
            parts.append(f"{figures.per_second(self.tokens_per_s)} tokens/s")
        return Text(" · ".join(parts), style="dim", no_wrap=True, overflow="ellipsis")


def make_console(*, stderr: bool) -> Console:
    """Where a run shows what it does. Off a terminal, no line is wrapped or cut."""
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = UNBOUNDED
    return console


def watch(names: Sequence[str], console: Console) -> Board:
    """The display that fits ``console``, to be entered while the run goes on."""
    return (LiveBoard if console.is_terminal else PlainBoard)(names, console)


def describe(report: DatasetReport) -> str:
    """What became of a dataset's rows and what of them is trained, in a few words."""
    parts = [f"{report.kept:,} samples"]
    if report.cut:
        parts.append(f"{report.cut:,} cut to max_seq_len")
    if report.dropped:
        parts.append(f"{report.dropped:,} dropped: nothing to train on within max_seq_len")
    trained = f"{report.share:.1%} of {report.tokens:,} tokens trained"
    parts.append(f"{trained}: {report.trains}" if report.trains else trained)
    return ", ".join(parts)


def jobs_table(rows: Sequence[Row], width: int) -> Table:
    """One row a job, as much as ``width`` columns of the terminal hold."""
    table = new_table()
    columns: dict[str, list[RenderableType]] = {"state": [_state(row) for row in rows]}
    if width >= WIDE:
        columns[""] = [_bar(row) for row in rows]
    columns["step"] = [_steps(row) for row in rows]
    columns["loss"] = [_loss(row) for row in rows]
    columns["held-out"] = [_held_out(row, both=width >= WIDER) for row in rows]
    lasts = [row.last for row in rows]
    columns["lr"] = [figures.rate(last.learning_rate if last else None) for last in lasts]
    columns["grad"] = [figures.norm(last.grad_norm if last else None) for last in lasts]
    columns["tok/s"] = [figures.per_second(row.tokens_per_s) for row in rows]
    if any(row.skipped for row in rows):
        columns["skipped"] = [Text(str(row.skipped or ""), style="bold red") for row in rows]
    for name in columns:
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    for index, row in enumerate(rows):
        table.add_row(Text(row.name), *(cells[index] for cells in columns.values()))
    return table


def new_table() -> Table:
    """A plain table with a column for the job's name, which gives way where there is no room."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("job", overflow="ellipsis", min_width=6)
    return table


def _state(row: Row) -> Text:
    return Text(row.state, style=STYLES.get(row.state, "dim"))


def _bar(row: Row) -> ProgressBar:
    style = STYLES.get(row.state, "dim")
    return ProgressBar(
        total=max(1, row.total_steps),
        completed=row.step,
        width=BAR_WIDTH,
        complete_style=style,
        finished_style=style,
    )


def _steps(row: Row) -> str:
    return f"{row.step}/{row.total_steps}" if row.total_steps else figures.NOTHING


def _loss(row: Row) -> Text:
    if row.last is None:
        return Text(figures.NOTHING)
    return Text(figures.loss(row.last.loss), style="bold red" if row.last.skipped else "")


def _held_out(row: Row, *, both: bool) -> str:
    now = figures.loss(row.eval_last)
    if both and row.eval_before is not None and row.eval_last != row.eval_before:
        return f"{figures.loss(row.eval_before)} → {now}"
    return now
