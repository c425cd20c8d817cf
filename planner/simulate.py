"""Play a plan through a pipeline: when each stage does what, how long it idles, what it holds.

The schedule is one forward, one backward (1F1B) without a flush. Stage s of S (from 0) first does
S-1-s forwards, then pairs of a forward and a backward, and at the end the backwards that are left.
So F(t), the forward of place t, comes on stage s right after B(t-(S-s)). A stage does one thing at
a time in this fixed order, and

- F_s(t) starts no sooner than its input is there: the end of F_{s-1}(t) plus the transfer;
- B_s(t) starts no sooner than the end of B_{s+1}(t) plus the transfer;
- the optimizer steps of a place that completes any follow its backward on each stage.

A no-op takes no time, but keeps its position in the order: what follows it waits as it would behind
a microbatch. An eval has a forward only.

*Flush.* After each place of ``flush_after`` the pipeline drains before the next forward enters.

*Replicas.* Place p goes to replica p mod D (counted anew after a flush), as place p div D of its
pipeline: its round. When a place of round k completes a step, every replica does that step on stage
s after its own backward of round k, and the forwards of round k+S (the first that may hold the
job's next step) start on stage s when all replicas have done it. The reduction itself takes no
time beside what ``step`` says.

Because the order is fixed, no queue of events is needed: one sweep over places and stages settles
every start, so the cost is linear in places x stages.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import add
from typing import Literal

from lorafusion.errors import PlanError
from lorafusion.planner.place_times import PlaceTimes
from lorafusion.planner.sweep import Grid, Starts, sweep

__all__ = ["Action", "ActionKind", "Simulation", "predict_bubble", "simulate"]

ActionKind = Literal["forward", "backward", "step"]


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that a stage does.

    Attributes:
        replica: From 0.
        stage: From 0.
        kind: ``step`` holds the optimizer steps of all jobs that the place completes.
        place: Index in the plan.
        start_s: Seconds (or loads) from the start of the first forward.
        end_s: The same.
    """

    replica: int
    stage: int
    kind: ActionKind
    place: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Simulation:
    """What became of a plan. Times are in the unit of the :class:`PlaceTimes`.

    Attributes:
        actions: Lane by lane (replica, then stage), each in the order in which they are done. A
            no-op has none, an eval its forwards, and a step stands where it takes time.
        makespan_s: End of the last action.
        busy_s: Of each stage, the time of its actions, summed over the replicas.
        bubble: Share of the time in which stages idle: 1 - sum of ``busy_s`` / (S · D · makespan).
        bubble_without_ramp: The same while the pipeline is full. Each stage of each replica is
            looked at from the start of its first backward to the end of its last forward; idle
            time in there, over the sum of these spans. 0 for equal places; waits for a flush or a
            no-op count. 0 where no stage has such a span.
        peak_bytes: Of each stage, the most bytes at once on any replica: ``static_bytes``, the
            ``held_bytes`` of each microbatch from the start of its forward to the end of its
            backward (of an eval, of its forward), and the ``working_bytes`` of the one that is
            being computed.
    """

    actions: tuple[Action, ...]
    makespan_s: float
    busy_s: tuple[float, ...]
    bubble: float
    bubble_without_ramp: float
    peak_bytes: tuple[float, ...]


def simulate(
    times: Sequence[PlaceTimes],
    *,
    stages: int,
    replicas: int = 1,
    flush_after: Collection[int] = (),
    static_bytes: Sequence[float] = (),
) -> Simulation:
    """Play the places, in this order, through ``replicas`` pipelines of ``stages`` stages.

    Args:
        times: What each place costs on each stage.
        stages: Pipeline stages S.
        replicas: Replicas D.
        flush_after: Places after which the pipeline drains.
        static_bytes: Bytes that each stage holds all the time; none if empty.

    Raises:
        PlanError: Stages or replicas below 1, times or bytes of another number of stages, or a
            flush after a place that does not exist.
    """
    if len(static_bytes) not in (0, stages):
        raise PlanError(f"{len(static_bytes)} static_bytes for {stages} stages; give one a stage.")
    grid = Grid.of(times, stages, replicas, flush_after)
    starts = sweep(times, grid)
    lanes = [
        [list(_lane(times, grid, starts, replica, stage)) for stage in range(stages)]
        for replica in range(replicas)
    ]
    flat = list(chain.from_iterable(lanes))
    busy = [sum(map(_busy, of_stage)) for of_stage in zip(*lanes, strict=True)]
    peak = [max(_peak(lane, times) for lane in of_stage) for of_stage in zip(*lanes, strict=True)]
    return Simulation(
        actions=tuple(chain.from_iterable(flat)),
        makespan_s=starts.makespan,
        busy_s=tuple(busy),
        bubble=_idle_share(sum(busy), stages * replicas * starts.makespan),
        bubble_without_ramp=_full_bubble(flat),
        peak_bytes=tuple(map(add, peak, static_bytes or (0.0,) * stages)),
    )


def predict_bubble(
    times: Sequence[PlaceTimes],
    *,
    stages: int,
    replicas: int = 1,
    flush_after: Collection[int] = (),
) -> tuple[float, float]:
    """The makespan and the bubble that :func:`simulate` finds, faster: without the actions."""
    grid = Grid.of(times, stages, replicas, flush_after)
    makespan = sweep(times, grid).makespan
    busy = sum(sum(cost.forward) + sum(cost.backward) + replicas * sum(cost.step) for cost in times)
    return makespan, _idle_share(busy, stages * replicas * makespan)


def _lane(
    times: Sequence[PlaceTimes], grid: Grid, starts: Starts, replica: int, stage: int
) -> Iterator[Action]:
    """What one stage of one replica does, in order."""
    for is_forward, round_ in grid.order(stage):
        place = grid.rounds[round_][replica]
        if is_forward:
            if place is not None and any(times[place].forward):
                start = starts.forward[round_][replica][stage]
                end = start + times[place].forward[stage]
                yield Action(replica, stage, "forward", place, start, end)
            continue
        at = starts.backward[round_][replica][stage]
        if place is not None and any(times[place].backward):
            start, at = at, at + times[place].backward[stage]
            yield Action(replica, stage, "backward", place, start, at)
        for ending in grid.rounds[round_]:
            if ending is not None and times[ending].step[stage]:
                start, at = at, at + times[ending].step[stage]
                yield Action(replica, stage, "step", ending, start, at)


def _busy(lane: Iterable[Action]) -> float:
    return sum(action.end_s - action.start_s for action in lane)


def _idle_share(busy: float, whole: float) -> float:
    # Rounding may take the sum of all parts past the whole.
    return max(0.0, 1 - busy / whole) if whole else 0.0


def _full_bubble(lanes: Iterable[Sequence[Action]]) -> float:
    """Idle share from each lane's first backward to its last forward."""
    busy = whole = 0.0
    for lane in lanes:
        forwards = [index for index, action in enumerate(lane) if action.kind == "forward"]
        backwards = [index for index, action in enumerate(lane) if action.kind == "backward"]
        if forwards and backwards and backwards[0] < forwards[-1]:
            span = lane[backwards[0] : forwards[-1] + 1]
            busy += _busy(span)
            whole += span[-1].end_s - span[0].start_s
    return _idle_share(busy, whole)


def _peak(lane: Iterable[Action], times: Sequence[PlaceTimes]) -> float:
    """Most bytes that the microbatches of a lane need at once."""
    held = most = 0.0
    for action in lane:
        if action.kind == "step":
            continue
        cost = times[action.place]
        size = cost.held_bytes[action.stage] if cost.held_bytes else 0.0
        working = cost.working_bytes[action.stage] if cost.working_bytes else 0.0
        if action.kind == "forward":
            held += size
        most = max(most, held + working)
        if action.kind == "backward" or not any(cost.backward):
            held -= size
    return most
