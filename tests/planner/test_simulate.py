"""The simulator: by hand, against closed forms, and against a slow one that shares no code."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafusion.errors import PlanError
from lorafusion.planner.place_times import PlaceTimes, load_times
from lorafusion.planner.plan import Limits, Place, Plan, PlannedSegment
from lorafusion.planner.simulate import Action, Simulation, predict_bubble, simulate
from lorafusion.planner.sweep import load_bubble


def train(stages: int, forward: float = 1, **more: Any) -> PlaceTimes:
    """A place that takes the same on every stage, backward twice the forward."""
    return PlaceTimes((forward,) * stages, (2 * forward,) * stages, (0,) * stages, **more)


def held_out(stages: int, forward: float = 1, **more: Any) -> PlaceTimes:
    return PlaceTimes((forward,) * stages, (0,) * stages, (0,) * stages, **more)


def spans(simulation: Simulation, stage: int, replica: int = 0) -> list[tuple[str, float, float]]:
    """What a lane does, such as ("F0", 0, 2)."""
    letters = {"forward": "F", "backward": "B", "step": "S"}
    return [
        (f"{letters[action.kind]}{action.place}", action.start_s, action.end_s)
        for action in simulation.actions
        if (action.replica, action.stage) == (replica, stage)
    ]


def test_two_stages_three_places_by_hand() -> None:
    times = [
        PlaceTimes((2, 3), (4, 6), (0, 0), 1),
        PlaceTimes((1, 1), (2, 2), (0.5, 0.25), 1, completes=True),
        PlaceTimes((3, 1), (5, 3), (0, 0), 1),
    ]
    result = simulate(times, stages=2)
    assert spans(result, 0) == [
        ("F0", 0, 2),
        ("F1", 2, 3),
        ("B0", 13, 17),
        ("F2", 17, 20),
        ("B1", 20, 22),
        ("S1", 22, 22.5),
        ("B2", 26, 31),
    ]
    assert spans(result, 1) == [
        ("F0", 3, 6),
        ("B0", 6, 12),
        ("F1", 12, 13),
        ("B1", 13, 15),
        ("S1", 15, 15.25),
        ("F2", 21, 22),
        ("B2", 22, 25),
    ]
    assert result.makespan_s == 31
    assert result.busy_s == (17.5, 16.25)
    assert result.bubble == pytest.approx(1 - 33.75 / 62)
    # Stage 0 from 13 to 20 without a gap; stage 1 from 6 to 22, idle from 15.25 to 21.
    assert result.bubble_without_ramp == pytest.approx(5.75 / (7 + 16))


@pytest.mark.parametrize("stages", [1, 2, 3, 8])
@pytest.mark.parametrize("places", [1, 2, 7, 40])
def test_equal_places_have_the_closed_form(stages: int, places: int) -> None:
    result = simulate([train(stages)] * places, stages=stages)
    assert result.makespan_s == 3 * (places + stages - 1)
    assert result.bubble == pytest.approx((stages - 1) / (places + stages - 1))
    assert result.bubble_without_ramp == pytest.approx(0)


def test_no_place_and_only_noops_take_no_time() -> None:
    for times in ([], [PlaceTimes.idle(3)] * 5):
        result = simulate(times, stages=3)
        assert result == Simulation((), 0, (0, 0, 0), 0, 0, (0, 0, 0))
        assert predict_bubble(times, stages=3) == (0, 0)


def test_noops_keep_their_position() -> None:
    """With S-1 no-ops between two places the second enters when the first has left."""
    alone = [train(3, 1), PlaceTimes.idle(3), PlaceTimes.idle(3), train(3, 2)]
    assert simulate(alone, stages=3).makespan_s == 3 * 3 + 3 * 6
    one_less = [train(3, 1), PlaceTimes.idle(3), train(3, 2)]
    assert spans(simulate(one_less, stages=3), 0)[1] == ("F2", 1, 3)


def test_an_eval_has_no_way_back() -> None:
    """Neither time nor a transfer: the place that enters behind its backward need not wait."""
    times = [held_out(2, transfer_s=10), train(2), train(2)]
    result = simulate(times, stages=2)
    assert [span[0] for span in spans(result, 0)] == ["F0", "F1", "F2", "B1", "B2"]
    assert spans(result, 1)[0] == ("F0", 11, 12)
    assert spans(result, 0)[2] == ("F2", 12, 13)


def test_flush() -> None:
    stages, places = 3, 2
    times = [train(stages)] * (2 * places)
    result = simulate(times, stages=stages, flush_after={places - 1, 2 * places - 1})
    assert result.makespan_s == 2 * 3 * (places + stages - 1)
    last = max(action.end_s for action in result.actions if action.place < places)
    assert min(action.start_s for action in result.actions if action.place >= places) == last
    # The wait for the flush is no ramp.
    assert result.bubble_without_ramp > 0.3


def test_places_are_dealt_anew_after_a_flush() -> None:
    result = simulate([train(1)] * 6, stages=1, replicas=2, flush_after={2})
    owners = {action.place: action.replica for action in result.actions}
    assert owners == {0: 0, 1: 1, 2: 0, 3: 0, 4: 1, 5: 0}
    # Replica 1 has no third place, but waits for replica 0.
    assert {a.start_s for a in result.actions if a.place in (3, 4) and a.kind == "forward"} == {6}


def test_a_step_waits_for_all_replicas_by_hand() -> None:
    ending = PlaceTimes((3,), (6,), (1,), completes=True)
    result = simulate([train(1), ending, train(1), train(1)], stages=1, replicas=2)
    assert spans(result, 0) == [
        ("F0", 0, 1),
        ("B0", 1, 3),
        ("S1", 3, 4),
        ("F2", 10, 11),
        ("B2", 11, 13),
    ]
    assert spans(result, 0, replica=1) == [
        ("F1", 0, 3),
        ("B1", 3, 9),
        ("S1", 9, 10),
        ("F3", 10, 11),
        ("B3", 11, 13),
    ]
    assert result.busy_s == (3 * 3 + 9 + 2 * 1,)
    assert result.bubble == pytest.approx(1 - 20 / 26)


def test_only_what_may_be_the_next_step_waits() -> None:
    """With two stages and replicas, places 2 and 3 are in flight beside the step of place 1."""
    slow = train(2, 10, completes=True)
    result = simulate([train(2), slow, *[train(2)] * 4], stages=2, replicas=2)
    starts = {a.place: a.start_s for a in result.actions if (a.stage, a.kind) == (0, "forward")}
    assert starts[2] == 1
    assert starts[4] == starts[5] == 60
    free = simulate([train(2), train(2, 10), *[train(2)] * 4], stages=2, replicas=2)
    assert next(a.start_s for a in free.actions if (a.place, a.stage) == (4, 0)) == 6


@pytest.mark.parametrize(("stages", "places"), [(1, 4), (4, 9), (4, 3), (5, 1)])
def test_stage_s_holds_the_microbatches_between_it_and_the_end(stages: int, places: int) -> None:
    times = [train(stages, held_bytes=(10.0,) * stages)] * places
    in_flight = [min(places, stages - stage) for stage in range(stages)]
    assert simulate(times, stages=stages).peak_bytes == tuple(10 * count for count in in_flight)


def test_peak_of_unequal_places_by_hand() -> None:
    # Stage 0 does F0 F1 B0 F2 B1 F3 B2 B3 and holds 5, 5+3, 3+4, 4+9 bytes.
    held = [(5.0, 1.0), (3.0, 2.0), (4.0, 1.5), (9.0, 1.0)]
    times = [train(2, held_bytes=size) for size in held]
    assert simulate(times, stages=2).peak_bytes == (13, 2)
    assert simulate(times, stages=2, static_bytes=(100, 200)).peak_bytes == (113, 202)
    # Working memory counts while that place is computed: beside 9 bytes in B2, 9 + 4 + 20.
    times[2] = train(2, held_bytes=held[2], working_bytes=(20.0, 0.0))
    assert simulate(times, stages=2).peak_bytes == (33, 2)


def test_an_eval_holds_its_bytes_for_its_forward_only() -> None:
    bytes_ = {"held_bytes": (10.0, 10.0)}
    assert simulate([held_out(2, **bytes_)] * 5, stages=2).peak_bytes == (10, 10)
    mixed = [train(2, **bytes_), held_out(2, **bytes_), train(2, **bytes_)]
    assert simulate(mixed, stages=2).peak_bytes == (20, 10)


def test_peak_is_that_of_the_fullest_replica() -> None:
    small, large = (train(1, held_bytes=(size,)) for size in (1.0, 7.0))
    assert simulate([small, large, small, small], stages=1, replicas=2).peak_bytes == (7,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": 0}, "stages is 0"),
        ({"replicas": 0}, "replicas is 0"),
        ({"stages": 3}, "place 0: .* number of stages than 3"),
        ({"flush_after": {1, 7}}, r"flush after the places \[7\]; .* 0 to 1"),
        ({"static_bytes": (1.0,)}, "1 static_bytes for 2 stages"),
        ({"times": [train(2), train(2, held_bytes=(1.0,))]}, "place 1: "),
    ],
)
def test_bad_input(change: Any, message: str) -> None:
    arguments = {"times": [train(2)] * 2, "stages": 2, **change}
    with pytest.raises(PlanError, match=message):
        simulate(arguments.pop("times"), **arguments)


@st.composite
def pipelines(draw: st.DrawFn) -> dict[str, Any]:
    """Random places; whole numbers, so that sums of times are exact."""
    stages = draw(st.integers(1, 5))
    number = st.integers(0, 9)
    column = st.tuples(*[st.integers(1, 9)] * stages)
    times: list[PlaceTimes] = []
    for kind in draw(st.lists(st.sampled_from(["train", "train", "eval", "noop"]), max_size=14)):
        cost = PlaceTimes.idle(stages)
        if kind != "noop":
            nothing = cost.step
            trains = kind == "train"
            ends = trains and draw(st.booleans())
            cost = PlaceTimes(
                forward=draw(column),
                backward=draw(column) if trains else nothing,
                step=draw(st.tuples(*[number] * stages)) if ends else nothing,
                transfer_s=draw(number),
                held_bytes=draw(column),
                completes=ends,
            )
        times.append(cost)
    places = st.sets(st.integers(0, len(times) - 1), max_size=3) if times else st.just(set[int]())
    return {
        "times": times,
        "stages": stages,
        "replicas": draw(st.integers(1, 3)),
        "flush_after": draw(places),
    }


@given(pipelines())
def test_every_start_is_that_of_the_slow_simulator(pipeline: dict[str, Any]) -> None:
    times = pipeline["times"]
    result = simulate(**pipeline)
    slow = Slow(**pipeline)
    slow.run()
    assert sorted(map(repr, result.actions)) == sorted(map(repr, slow.actions))
    assert result.makespan_s == max((action.end_s for action in slow.actions), default=0)
    assert predict_bubble(**pipeline) == pytest.approx((result.makespan_s, result.bubble))
    by_stage = [
        sum(cost.forward[s] + cost.backward[s] for cost in times) for s in range(slow.stages)
    ]
    steps = [slow.replicas * sum(cost.step[s] for cost in times) for s in range(slow.stages)]
    assert result.busy_s == tuple(map(sum, zip(by_stage, steps, strict=True)))


@given(pipelines())
def test_a_pipeline_keeps_its_rules(pipeline: dict[str, Any]) -> None:
    times, stages = pipeline["times"], pipeline["stages"]
    result = simulate(**pipeline)
    lanes: dict[tuple[int, int], list[Action]] = defaultdict(list)
    at: dict[tuple[str, int, int], Action] = {}
    for action in result.actions:
        lanes[action.replica, action.stage].append(action)
        if action.kind != "step":
            assert (action.kind, action.stage, action.place) not in at
            at[action.kind, action.stage, action.place] = action
    assert len(at) == stages * sum(any(t.forward) + any(t.backward) for t in times)
    for lane in lanes.values():
        assert all(before.end_s <= after.start_s for before, after in pairwise(lane))
        assert result.makespan_s >= sum(action.end_s - action.start_s for action in lane)
    for (kind, stage, place), action in at.items():
        source = stage - 1 if kind == "forward" else stage + 1
        if (before := at.get((kind, source, place))) is not None:
            assert action.start_s >= before.end_s + times[place].transfer_s
            assert action.replica == before.replica
        if kind == "backward":
            assert action.start_s >= at["forward", stage, place].end_s
    assert 0 <= result.bubble < 1
    assert -1e-9 <= result.bubble_without_ramp < 1
    for place in pipeline["flush_after"]:
        begins = [action.start_s for action in result.actions if action.place > place]
        ends = [a.end_s for a in result.actions if a.place <= place and a.kind != "step"]
        assert min(begins, default=1e9) >= max(ends, default=0)


@given(st.lists(st.integers(0, 50), max_size=12), st.integers(1, 6))
def test_load_bubble_is_that_of_the_simulation(loads: list[int], stages: int) -> None:
    places = [
        Place("train", (PlannedSegment("a", 1, (i,), (load,)),)) if load else Place("noop")
        for i, load in enumerate(loads)
    ]
    times = load_times(Plan(Limits(64, stages), tuple(places)))
    assert load_bubble(loads, stages) == pytest.approx(simulate(times, stages=stages).bubble)


@dataclass
class Slow:
    """Every lane goes down its list of actions and does the next as soon as what it needs is done.

    The order is written from the description of 1F1B: min(S-1-s, M) forwards, a forward and a
    backward in turns, the rest of the backwards.
    """

    times: Sequence[PlaceTimes]
    stages: int
    replicas: int
    flush_after: Collection[int]
    ends: dict[tuple[str, int, int, int, int], float] = field(default_factory=dict)
    actions: list[Action] = field(default_factory=list)
    free: dict[tuple[int, int], float] = field(default_factory=lambda: defaultdict(float))

    def segments(self) -> Iterator[list[list[int | None]]]:
        """Rounds of places, by replica."""
        begin = 0
        for place in sorted({*self.flush_after, len(self.times) - 1}):
            mine: list[int | None] = [*range(begin, place + 1)]
            begin = place + 1
            mine += [None] * (-len(mine) % self.replicas)
            yield [mine[i : i + self.replicas] for i in range(0, len(mine), self.replicas)]

    def lane(self, stage: int, rounds: int) -> Iterator[tuple[str, int]]:
        warm_up = min(self.stages - 1 - stage, rounds)
        yield from (("forward", index) for index in range(warm_up))
        for index in range(rounds - warm_up):
            yield "forward", warm_up + index
            yield "backward", index
        yield from (("backward", index) for index in range(rounds - warm_up, rounds))

    def run(self) -> None:
        for number, rounds in enumerate(self.segments()):
            self.play(number, rounds)
            for stage in range(self.stages):
                drained = max(self.free[replica, stage] for replica in range(self.replicas))
                self.free.update({(replica, stage): drained for replica in range(self.replicas)})

    def play(self, number: int, rounds: list[list[int | None]]) -> None:
        lanes = {
            (replica, stage): list(self.lane(stage, len(rounds)))
            for replica in range(self.replicas)
            for stage in range(self.stages)
        }
        while any(lanes.values()):
            progress = False
            for lane, todo in lanes.items():
                while todo and (ready := self.ready(number, rounds, todo[0], *lane)) >= 0:
                    kind, index = todo.pop(0)
                    start = max(ready, self.free[lane])
                    self.free[lane] = self.do((kind, number, index, *lane), rounds[index], start)
                    progress = True
            assert progress, "the slow simulator is stuck"

    def ready(
        self,
        number: int,
        rounds: list[list[int | None]],
        action: tuple[str, int],
        replica: int,
        stage: int,
    ) -> float:
        """When its inputs are there; -1 when one is not settled yet."""
        kind, index = action
        needs: list[float | None] = [0.0]
        place = rounds[index][replica]
        cost = PlaceTimes.idle(self.stages) if place is None else self.times[place]
        source = stage - 1 if kind == "forward" else stage + 1
        if 0 <= source < self.stages:
            end = self.ends.get((kind, number, index, replica, source))
            moves = kind == "forward" or any(cost.backward)
            needs.append(None if end is None else end + (cost.transfer_s if moves else 0))
        before = index - self.stages
        waits = kind == "forward" and before >= 0 and self.replicas > 1
        if waits and any(p is not None and self.times[p].completes for p in rounds[before]):
            others = range(self.replicas)
            needs += [self.ends.get(("done", number, before, r, stage)) for r in others]
        settled = [need for need in needs if need is not None]
        return max(settled) if len(settled) == len(needs) else -1.0

    def do(
        self, key: tuple[str, int, int, int, int], round_: list[int | None], start: float
    ) -> float:
        kind, number, index, replica, stage = key
        place = round_[replica]
        at = start
        if place is not None:
            cost = self.times[place]
            length = cost.forward[stage] if kind == "forward" else cost.backward[stage]
            at += length
            if length:
                self.actions.append(Action(replica, stage, kind, place, start, at))  # type: ignore[arg-type]
        self.ends[key] = at
        if kind == "backward":
            for ending in round_:
                if ending is not None and (length := self.times[ending].step[stage]):
                    self.actions.append(Action(replica, stage, "step", ending, at, at + length))
                    at += length
            self.ends["done", number, index, replica, stage] = at
        return at
