from __future__ import annotations

import pytest

from lorafusion.planner.plan import Limits, Plan
from lorafusion.planner.simulate import simulate
from lorafusion.plans.quantities import Unit, duration, scale, size
from lorafusion.plans.summary import LISTED, JobSummary, summarise
from tests.plans.samples import SMALL, by_load, in_seconds, large, renamed


def test_the_figures_are_those_worked_out_by_hand() -> None:
    found = summarise(SMALL, by_load(SMALL), unit="load", title="six places")
    assert (found.places, found.microbatches, found.noops) == (6, 5, 1)
    assert (found.train, found.evals, found.steps) == (4, 1, 4)
    assert found.makespan == 1500
    # Each stage works 40 + 3 x 320 of 1500.
    assert found.bubble == pytest.approx(1 - 1000 / 1500)
    assert found.fill == pytest.approx((40 + 100 + 50 + 90 + 80) / 500)
    assert found.tokens == 360


def test_a_jobs_part_is_counted_with_its_load_and_places() -> None:
    plan = Plan(Limits(100, 2, segment_load=3), SMALL.places, SMALL.alone)
    found = summarise(plan, by_load(plan), unit="load").jobs
    # In the order of their first places.
    assert found == (
        JobSummary("b", 1, 1, 3, 110, 119, 0, 2, alone=False),
        JobSummary("a", 2, 0, 3, 170, 176, 1, 4, alone=False),
        JobSummary("c", 1, 0, 1, 80, 83, 5, 5, alone=True),
    )


def test_the_lines_hold_every_figure_and_a_line_a_job() -> None:
    lines = summarise(SMALL, by_load(SMALL), unit="load", title="six places").lines()
    assert lines[0] == "six places"
    text = "\n".join(lines)
    for expected in (
        "places               6  on 2 stages",
        "1,500  in load units",
        "33.3%",
        "72.0%",
    ):
        assert expected in text, text
    assert "4 train, 1 eval" in text and "memory" not in text
    assert lines[-4:] == [
        "job  steps  samples  tokens  places",
        "b        1        3     110  0 to 2",
        "a        2        3     170  1 to 4",
        "c        1        1      80  5 to 5  alone",
    ]


def test_memory_and_replicas_are_shown_where_they_are_known() -> None:
    plan = large(60, stages=3, replicas=2)
    found = summarise(plan, in_seconds(plan))
    text = "\n".join(found.lines())
    assert "on 3 stages, 2 replicas" in text
    assert f"{size(max(found.peak_bytes))}  on the fullest stage" in text
    assert "predicted by the cost model" in text


def test_names_cannot_move_the_cursor() -> None:
    plan = renamed(SMALL, {"a": "x\x1b[2J\ny\u2028\u202e"})
    found = summarise(plan, by_load(plan), unit="load", title="t\r")
    lines = found.lines()
    assert all(line.isprintable() for line in lines)
    assert any("x�[2J�y��" in line for line in lines)


def test_a_terminal_is_not_flooded_by_jobs() -> None:
    plan = large(400, stages=1, jobs=LISTED + 12)
    lines = summarise(plan, by_load(plan), unit="load").lines()
    assert lines[-1] == "and 12 more jobs"
    assert sum("job-" in line for line in lines) == LISTED


def test_a_plan_of_nothing() -> None:
    plan = Plan(Limits(capacity=10), ())
    found = summarise(plan, simulate([], stages=1))
    assert (found.places, found.fill, found.jobs) == (0, 0.0, ())
    assert found.lines()


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0.0, "s", "0 µs"),
        (0.000412, "s", "412 µs"),
        (0.01234, "s", "12.3 ms"),
        (0.9996, "s", "1000 ms"),
        (1.0, "s", "1 s"),
        (59.4, "s", "59.4 s"),
        (59.6, "s", "1 min 00 s"),
        (245.2, "s", "4 min 05 s"),
        (7630.0, "s", "2 h 07 min"),
        (12345.4, "load", "12,345"),
    ],
)
def test_durations(value: float, unit: Unit, shown: str) -> None:
    assert duration(value, unit) == shown


def test_scales_and_sizes() -> None:
    assert scale(0.5, "s") == ("ms", 1e-3) and scale(1e-9, "s") == ("µs", 1e-6)
    assert scale(5e6, "load") == ("load units", 1.0)
    assert [size(n) for n in (0, 900, 1010, 1536 << 10, 1 << 40)] == [
        "0 B",
        "900 B",
        "1010 B",
        "1.5 MiB",
        "1,024.0 GiB",
    ]
