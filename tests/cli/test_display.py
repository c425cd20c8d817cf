"""The live table and the closing part, at the widths of real terminals."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from lorafusion.cli.closing import shorten, show_result
from lorafusion.cli.display import LiveBoard, PlainBoard, make_console, watch
from lorafusion.data.dataset import DatasetReport
from lorafusion.training.job import StepResult
from lorafusion.training.result import Generation, JobResult, RunResult

REPORT = DatasetReport("rows.jsonl", 10, 9, 2, 1, 1000, 500, "messages", "answers")
BAD = StepResult(2, 0.5, math.nan, 1e-3, math.nan, 100, 50, skipped=True)
LONG = "customer-support-with-a-very-long-name"


def terminal(width: int, height: int = 40) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, width=width, height=height, highlight=False,
        markup=False, emoji=False, color_system=None,
    )  # fmt: skip


def good(step: int) -> StepResult:
    return StepResult(step, 0.1, 1.234, 8e-4, 2.312, 100, 50, skipped=False)


def board(console: Console) -> LiveBoard:
    board = LiveBoard([LONG, "b", "[red]c"], console)
    for name in (LONG, "b"):
        board.ready(name, REPORT, done=0, total_steps=24)
        board.evaluated(name, 0, 2.5)
    board.step(LONG, good(12), tokens_per_s=1310.0)
    board.evaluated(LONG, 12, 2.25)
    board.step("b", BAD, tokens_per_s=1310.0)
    board.ended(JobResult("b", "failed", "not finite", 2, 24))
    return board


def drawn(board: LiveBoard) -> list[str]:
    console = board.console
    with console.capture() as capture:
        console.print(board.render())
    return [line.rstrip() for line in capture.get().splitlines()]


@pytest.mark.parametrize("width", [80, 120, 200])
def test_live_table_fits_and_shows_every_figure(width: int) -> None:
    lines = drawn(board(terminal(width)))
    assert len(lines) == 5  # header, three jobs, status: nothing wraps
    assert max(map(len, lines)) <= width
    assert lines[0].split() == ("job state step loss held-out lr grad tok/s skipped".split())
    first = lines[1].split()
    assert first[0].startswith("customer")
    assert (first[0] == LONG) == (width == 200)
    for cell in ("running", "12/24", "1.234", "2.250", "8.0e-04", "2.31", "1,310"):
        assert cell in first
    assert ("2.500" in first) == (width >= 120)
    assert ("━" in lines[1]) == (width >= 120)
    assert lines[2].split()[-1] == "1"  # one step skipped
    assert "nan" in lines[2]
    assert lines[3].startswith("[red]c")
    # Two jobs of 100 tokens each, at 1,310 tokens/s for one of them.
    assert lines[4].endswith("2,620 tokens/s")


def test_more_jobs_than_lines_show_the_running_ones_first() -> None:
    names = [f"job-{i}" for i in range(40)]
    board = LiveBoard(names, terminal(100, height=16))
    for name in names[:35]:
        board.ended(JobResult(name, "succeeded"))
    lines = drawn(board)
    assert len(lines) <= 15
    assert [line.split()[0] for line in lines[1:6]] == names[35:]
    assert lines[-2] == "… and 30 more; 35 of 40 have ended"


def result(folder: str) -> RunResult:
    answer = Generation("ask\x1b[2J" + "x" * 400, "yes", "no", "yes")
    jobs = (
        JobResult(LONG, "succeeded", None, 24, 24, 2.0, 1.0, 2.5, 1.25, folder, 12345, answer),
        JobResult("b", "failed", "loss [nan] is not finite", 2, 24, 2.0, math.nan, 2.5),
        JobResult("[red]c", "failed", "no such file"),
        JobResult("d", "failed", "no such file"),
    )
    return RunResult(jobs, 1310.4, 60.0, 125.0, 1234.5, "abcdef0123456789")


@pytest.mark.parametrize("width", [80, 120, 200])
def test_closing_table_fits(width: int) -> None:
    console = terminal(width)
    folder = "/somewhere/quite/deep/runs/demo/customer/adapter"
    rows = board(terminal(width)).rows
    with console.capture() as capture:
        show_result(console, result(folder), rows)
    text = capture.get()
    lines = text.splitlines()
    # Paths alone may be longer: a terminal wraps them so that they can be copied whole.
    assert max(len(line) for line in lines if "adapter of" not in line) <= width
    first = next(line for line in lines if line.startswith("customer"))
    for cell in ("succeeded", "24/24", "2.500 → 1.250", "-50.0%", "2.000 → 1.000", "12,345"):
        assert cell in first
    assert (folder in first) == (width == 200)
    assert folder in text
    assert "b failed: loss [nan] is not finite" in text
    assert "[red]c, d failed: no such file" in text  # one reason, one line
    assert "b: steps skipped as loss or gradient was not finite: 1" in text
    assert "\x1b[2J" not in text
    assert "peak memory 1.23 GB" in text
    assert "abcdef012345)" in text


def test_shorten_leaves_the_middle_out() -> None:
    assert shorten("a\n  b\x07c") == "a b c"
    assert shorten("  ") == "(nothing)"
    short = shorten("a" * 300 + "b" * 300)
    assert len(short) <= 300
    assert short.startswith("aaa")
    assert short.endswith("bbb")


def test_plain_lines_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console = make_console(stderr=True)
    plain = watch(["a", "bee"], console)
    assert isinstance(plain, PlainBoard)
    with plain:
        plain.ready("a", REPORT, done=3, total_steps=24)
        plain.step("a", BAD, tokens_per_s=0.0)
        plain.evaluated("bee", 12, 2.25)
        plain.note("x" * 300)
        plain.ended(JobResult("bee", "paused", "stopped by SIGTERM"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "a    9 samples, 2 cut to max_seq_len, 1 dropped: nothing to train on within max_seq_len"
        ", 50.0% of 1,000 tokens trained: answers  24 steps  resumed after step 3",
        "a    step 2/24  loss nan  lr 1.0e-03  grad nan  0 tok/s  SKIPPED: not finite",
        "bee  held-out loss 2.250 after step 12",
        "note: " + "x" * 300,
        "bee  paused  stopped by SIGTERM",
    ]


def test_the_live_table_is_gone_at_the_end() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, markup=False)
    with watch(["a"], console) as live:
        assert isinstance(live, LiveBoard)
        live.ready("a", REPORT, done=0, total_steps=2)
        live.note("read me")
    text = screen.getvalue()
    assert "read me" in text
    assert text.endswith("\x1b[1A\x1b[2K")  # the cursor is back where the table began
