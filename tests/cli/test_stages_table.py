"""The table of the stages of a pipeline at the end of a run."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from lorafusion.cli.closing import show_stages
from lorafusion.training.stage_times import StageTimes

TIMES = StageTimes(
    stage=0, layers=(0, 8), forward_s=10.0, backward_s=25.0, step_s=5.0, send_s=1.0,
    wait_before_s=0.0, wait_after_s=3.0, wait_plan_s=1.0, longest_wait_s=0.5, longest_wait="x",
    begin_s=0.0, wall_s=50.0, busy_s=40.0, bubble=0.2, full_s=45.0, full_busy_s=40.5,
    bubble_without_ramp=0.1, peak_rss_mb=2345.6,
)  # fmt: skip


def printed(width: int, *stages: StageTimes) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as capture:
        show_stages(console, stages)
    return [line.rstrip() for line in capture.get().splitlines()]


def test_a_row_a_stage() -> None:
    last = replace(TIMES, stage=1, layers=(8, 9), wait_before_s=5.0, wait_after_s=0.0, full_s=0.0)
    blank, _, heads, *rows = printed(80, TIMES, last)
    assert blank == ""
    assert heads.split() == (
        "stage layers busy bubble no ramp before behind plan other memory".split()
    )
    # Of 50 s: 6% for the stage behind, 2% for the plan, and 6 s in nothing else.
    assert rows[0].split() == "0 0-7 40.0 s 20.0% 10.0% - 6.0% 2.0% 12.0% 2.35 GB".split()
    assert rows[1].split() == "1 8 40.0 s 20.0% - 10.0% - 2.0% 8.0% 2.35 GB".split()


@pytest.mark.parametrize("busy", [3.0, 99_999.0])
def test_it_fits_a_narrow_terminal(busy: float) -> None:
    wide = replace(TIMES, layers=(100, 126), busy_s=busy, wait_before_s=4.9, peak_rss_mb=123456.0)
    lines = printed(80, *[replace(wide, stage=stage) for stage in range(12)])
    assert len(lines) == 15 and max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)


def test_nothing_for_one_stage_or_for_layers_that_nobody_said() -> None:
    assert printed(80, TIMES) == printed(80) == []
    rows = printed(80, *[replace(TIMES, stage=stage, layers=None) for stage in range(2)])
    assert rows[-1].split()[:3] == ["1", "-", "40.0"]


def test_a_stage_that_did_nothing_has_a_row() -> None:
    idle = replace(TIMES, stage=1, wall_s=0.0, busy_s=0.0, wait_after_s=0.0, wait_plan_s=0.0)
    assert printed(80, TIMES, idle)[-1].split()[:4] == ["1", "0-7", "0.00", "s"]
