from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from lorafusion.errors import OutputError
from lorafusion.planner.place_times import PlaceTimes
from lorafusion.planner.plan import Limits, Place, Plan
from lorafusion.planner.simulate import Action, simulate
from lorafusion.plans.fitted import fitted_times, planned
from lorafusion.plans.halves import Halves
from lorafusion.plans.measured import exclusive, measured
from lorafusion.plans.recorded import Recording, Span, read_recording
from tests.plans.recorded_runs import record, sweep, write_ranks
from tests.plans.samples import SMALL, in_seconds, large, segment


def recording(plan: Plan, *ranks: list[Span]) -> Recording:
    return Recording(1, plan, len(plan.places), tuple(map(tuple, ranks)))


def times_of(plan: Plan, *, transfer_s: float, noise: float = 0.0) -> list[PlaceTimes]:
    """Each stage with times of its own, linear in the load but for the noise."""
    rng = random.Random(3)

    def seconds(place: Place, fixed: float) -> tuple[float, ...]:
        stages = range(plan.limits.stages)
        load = place.load(plan.limits)
        return tuple(
            (fixed + (1 + stage) * 1e-5 * load) * rng.uniform(1 - noise, 1 + noise)
            for stage in stages
        )

    found: list[PlaceTimes] = []
    none = (0.0,) * plan.limits.stages
    for place in plan.places:
        if place.kind == "noop":
            found.append(PlaceTimes.idle(plan.limits.stages))
            continue
        trains = place.kind == "train"
        steps = (0.002 * len(place.completes),) * plan.limits.stages if trains else none
        forward = seconds(place, 0.001 if trains else 0.0005)
        backward = seconds(place, 0.003) if trains else none
        found.append(PlaceTimes(forward, backward, steps, transfer_s=transfer_s))
    return found


def test_spans_are_taken_apart_by_hand() -> None:
    outer = Span("forward", 0, "a", 0.0, 10.0)
    wait = Span("wait", 0, "b", 2.0, 5.0)
    send = Span("send", 0, "c", 4.0, 5.0)
    later = Span("backward", 0, "d", 12.0, 13.0)
    inside = Span("step", 0, "e", 12.0, 12.5)
    found = [(s.kind, s.start, s.end) for s in exclusive([send, wait, outer, later, inside])]
    assert found == [
        ("forward", 0.0, 2.0),
        ("wait", 2.0, 4.0),
        ("send", 4.0, 5.0),
        ("forward", 5.0, 10.0),
        ("step", 12.0, 12.5),
        ("backward", 12.5, 13.0),
    ]


def test_spans_taken_apart_cover_each_instant_once(tmp_path: Path) -> None:
    record(tmp_path, sweep(5), load_s=1e-6)
    for spans in read_recording(tmp_path, 4).spans:
        apart = list(exclusive(spans))
        assert all(a.end <= b.start for a, b in pairwise(apart))
        assert sum(s.end - s.start for s in apart) == pytest.approx(
            sum(s.end - s.start for s in spans), abs=1e-5
        )


@pytest.mark.parametrize("offsets", [(), (0.0, 7.5, -300.0, 1e5)])
def test_a_run_that_did_what_a_simulation_says_measures_as_it(
    tmp_path: Path, offsets: tuple[float, ...]
) -> None:
    plan = large(120, stages=4)
    expected = in_seconds(plan, step_s=0.003)
    write_ranks(tmp_path, plan, expected, offsets)
    found = measured(read_recording(tmp_path, 4)).simulation
    assert [(a.stage, a.kind, a.place) for a in found.actions] == [
        (a.stage, a.kind, a.place) for a in expected.actions
    ]
    for name in ("start_s", "end_s"):
        assert [getattr(a, name) for a in found.actions] == pytest.approx(
            [getattr(a, name) for a in expected.actions], abs=1e-8
        )
    assert found.makespan_s == pytest.approx(expected.makespan_s)
    assert found.busy_s == pytest.approx(expected.busy_s)
    assert found.bubble == pytest.approx(expected.bubble)
    assert found.bubble_without_ramp == pytest.approx(expected.bubble_without_ramp)
    assert expected.bubble > expected.bubble_without_ramp > 0


def test_waits_and_sends_are_cut_to_the_run() -> None:
    """Time begins with the first forward, and ends with the last action, of all ranks."""
    plan = replace(SMALL, places=SMALL.places[1:2])
    first = [Span("forward", 0, "", 10.0, 11.0), Span("backward", 0, "", 14.0, 16.0)]
    second = [
        Span("wait", 0, "the plan", 5.0, 9.0),
        Span("wait", 0, "forward of stage 0", 9.5, 11.5),
        Span("forward", 0, "", 11.5, 12.5),
        Span("backward", 0, "", 12.5, 13.5),
        Span("send", 1, "", 13.5, 13.75),
        Span("wait", 1, "the plan", 13.75, 40.0),
        Span("wait", 1, "the plan", 41.0, 42.0),
    ]
    found = measured(recording(plan, first, second))
    assert found.origin_s == 10.0 and found.simulation.makespan_s == 6.0
    assert [(b.stage, b.kind, b.name, b.start_s, b.end_s) for b in found.beside] == [
        (1, "wait", "forward of stage 0", 0.0, 1.5),
        (1, "send", "", 3.5, 3.75),
        (1, "wait", "the plan", 3.75, 6.0),
    ]
    assert found.simulation.bubble == pytest.approx(1 - 5 / 12)


def test_nothing_computed_is_an_error() -> None:
    with pytest.raises(OutputError, match="Nothing is in the traces"):
        measured(recording(SMALL, [Span("wait", 0, "the plan", 0.0, 1.0)], []))


def with_waits(plan: Plan, actions: tuple[Action, ...], transfer_s: float) -> list[list[Span]]:
    """Each rank's spans, with a wait in front of each forward that ends as its input arrives."""
    ranks: list[list[Span]] = []
    ends: dict[tuple[int, int], float] = {}
    for stage in range(plan.limits.stages):
        spans: list[Span] = []
        last = 0.0
        for action in [action for action in actions if action.stage == stage]:
            if action.kind == "forward":
                ends[stage, action.place] = action.end_s
                arrived = ends.get((stage - 1, action.place), -1.0) + transfer_s
                if stage and arrived > last:
                    name = f"forward of stage {stage - 1}"
                    spans.append(Span("wait", action.place, name, last, arrived))
            last = action.end_s
            spans.append(Span(action.kind, action.place, "", action.start_s, action.end_s))
        ranks.append(spans)
    return ranks


def test_a_run_that_keeps_to_the_schedule_is_as_planned() -> None:
    """Its times are linear in the load on each stage: the fit finds them all again."""
    plan = large(90, stages=3)
    times = times_of(plan, transfer_s=0.004)
    expected = simulate(times, stages=3)
    found = recording(plan, *with_waits(plan, expected.actions, 0.004))
    for fitted, given in zip(fitted_times(found), times, strict=True):
        for name in ("forward", "backward", "step"):
            assert getattr(fitted, name) == pytest.approx(getattr(given, name), rel=1e-6)
        assert fitted.transfer_s == pytest.approx(given.transfer_s, rel=1e-6)
    assert planned(found).makespan_s == pytest.approx(expected.makespan_s)
    assert planned(found).bubble_without_ramp == pytest.approx(expected.bubble_without_ramp)


def test_as_much_work_is_planned_as_was_measured() -> None:
    """With any noise, on each stage: what differs is the order and the waits alone."""
    plan = large(90, stages=3)
    expected = simulate(times_of(plan, transfer_s=0.0, noise=0.9), stages=3)
    found = recording(plan, *with_waits(plan, expected.actions, 0.0))
    assert planned(found).busy_s == pytest.approx(measured(found).simulation.busy_s)
    assert planned(found).makespan_s < measured(found).simulation.makespan_s


@pytest.mark.parametrize("seconds", [(3.0, 1.0), (1.0, 9.0), (2.0, 2.0)])
def test_no_load_takes_less_than_no_time(seconds: tuple[float, float]) -> None:
    places = tuple(Place("train", (segment("a", 1, load),)) for load in (50, 60))
    plan = Plan(Limits(100), places)
    first, second = seconds
    spans = [Span("forward", 0, "", 0.0, first), Span("forward", 1, "", 10.0, 10.0 + second)]
    found = [times.forward[0] for times in fitted_times(recording(plan, spans))]
    assert sum(found) == pytest.approx(first + second)
    assert found[1] >= found[0] > 0


def test_the_stages_rows_add_up(tmp_path: Path) -> None:
    times = record(tmp_path, sweep(8), load_s=1e-5)
    halves = Halves.of(read_recording(tmp_path, 4), "run")
    for stage, (row, kept) in enumerate(zip(halves.rows(), times, strict=True)):
        # What the rank itself summed up while it ran.
        assert row.forward_s == pytest.approx(kept.forward_s, abs=1e-4)
        assert row.backward_s == pytest.approx(kept.backward_s, abs=1e-4)
        assert row.step_s == pytest.approx(kept.step_s, abs=1e-4)
        assert row.before_s <= kept.wait_before_s + 1e-4
        assert row.after_s == pytest.approx(kept.wait_after_s, abs=1e-4)
        assert (row.before_s > 0, row.after_s > 0) == (stage > 0, stage < 3)
        busy = row.forward_s + row.backward_s + row.step_s
        waits = row.before_s + row.after_s + row.plan_s
        makespan = halves.run.simulation.makespan_s
        assert busy + waits + row.other_s == pytest.approx(makespan)
        assert row.idle == pytest.approx(1 - busy / makespan)
        assert 0 < row.planned_idle < 1
