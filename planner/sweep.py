"""When each action of a pipeline starts: one sweep over places and stages, see ``simulate``."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from lorafusion.errors import PlanError
from lorafusion.planner.place_times import PlaceTimes

__all__ = ["Grid", "Starts", "load_bubble", "sweep"]


@dataclass(frozen=True, slots=True)
class Grid:
    """How the places are dealt to the pipelines.

    Attributes:
        stages: Stages S.
        replicas: Replicas D.
        rounds: Per round the place that each replica has; None where the places have run out.
        segments: The rounds between two flushes.
    """

    stages: int
    replicas: int
    rounds: tuple[tuple[int | None, ...], ...]
    segments: tuple[range, ...]

    @classmethod
    def of(
        cls, times: Sequence[PlaceTimes], stages: int, replicas: int, flush_after: Collection[int]
    ) -> Grid:
        """Deal the places, anew after each flush.

        Raises:
            PlanError: See :func:`lorafusion.planner.simulate.simulate`.
        """
        _check(times, stages, replicas, flush_after)
        rounds: list[tuple[int | None, ...]] = []
        segments: list[range] = []
        edges = sorted({0, len(times), *(place + 1 for place in flush_after)})
        for first, last in pairwise(edges):
            begin = len(rounds)
            for place in range(first, last, replicas):
                dealt = range(place, place + replicas)
                rounds.append(tuple(index if index < last else None for index in dealt))
            segments.append(range(begin, len(rounds)))
        return cls(stages, replicas, tuple(rounds), tuple(segments))

    def order(self, stage: int) -> Iterator[tuple[bool, int]]:
        """What a stage does, in order: (whether it is a forward, round)."""
        behind = self.stages - 1 - stage
        for segment in self.segments:
            for turn in range(segment.start, segment.stop + behind):
                if turn < segment.stop:
                    yield True, turn
                if turn - behind >= segment.start:
                    yield False, turn - behind


@dataclass(frozen=True, slots=True)
class Starts:
    """Starts of all forwards and backwards, by round, replica and stage, and the end of it all."""

    forward: list[list[list[float]]]
    backward: list[list[list[float]]]
    makespan: float


def sweep(times: Sequence[PlaceTimes], grid: Grid) -> Starts:
    """Settle every start.

    In turn t each stage s does F(t), then B(t-(S-1-s)): what these wait for was settled in this
    turn on the stage before, or in the last turn.
    """
    forward = [[[0.0] * grid.stages for _ in places] for places in grid.rounds]
    backward = [[[0.0] * grid.stages for _ in places] for places in grid.rounds]
    pipelines = [_Pipeline(grid.stages) for _ in range(grid.replicas)]
    idle = PlaceTimes.idle(grid.stages)
    for places, *rows in zip(grid.rounds, forward, backward, strict=True):
        costs = [idle if place is None else times[place] for place in places]
        step = tuple(map(sum, zip(*(cost.step for cost in costs), strict=True)))
        for pipeline, cost, *starts in zip(pipelines, costs, *rows, strict=True):
            # Nothing goes back from an eval.
            hop_back = cost.transfer_s if any(cost.backward) else 0.0
            hops = (cost.transfer_s, hop_back)
            pipeline.entries.append(_Entry(cost.forward, cost.backward, step, *hops, *starts))
    for segment in grid.segments:
        ends = _ends(times, grid, segment) if grid.replicas > 1 else set[int]()
        _play(pipelines, segment, grid.stages, ends)
    makespan = max((max(pipeline.free) for pipeline in pipelines), default=0.0)
    return Starts(forward, backward, makespan)


def load_bubble(loads: Sequence[float], stages: int) -> float:
    """The bubble of one pipeline with forward = load and backward = 2 x load on every stage.

    The same as ``simulate`` gives for the ``load_times`` of a plan, some twenty times faster: for a
    search that asks often.

    Args:
        loads: Load of each place; 0 for a no-op.
        stages: Pipeline stages S.

    Returns:
        Share of the time in which stages idle, ramp included.
    """
    free = [0.0] * stages
    sent = [0.0] * (stages + 1)
    count = len(loads)
    for turn in range(count + stages - 1):
        load = loads[turn] if turn < count else 0.0
        arrived = 0.0
        leaving = turn - stages
        for stage in range(stages):
            leaving += 1
            at = free[stage]
            if turn < count:
                arrived = at = (at if at > arrived else arrived) + load
            if 0 <= leaving < count:
                back = sent[stage + 1]
                sent[stage] = at = (at if at > back else back) + 2 * loads[leaving]
            free[stage] = at
    makespan = max(free)
    return 1 - 3 * sum(loads) / makespan if makespan else 0.0


class _Entry(NamedTuple):
    """A place on its way through one pipeline, and where its starts are noted down."""

    forward: tuple[float, ...]
    backward: tuple[float, ...]
    step: tuple[float, ...]  # of all places of its round
    hop: float
    hop_back: float
    forward_starts: list[float]
    backward_starts: list[float]


class _Pipeline:
    """One replica while its places pass through."""

    def __init__(self, stages: int) -> None:
        self.entries: list[_Entry] = []  # by round
        self.free = [0.0] * stages  # when the stage is done with what it did so far
        self.sent = [0.0] * (stages + 1)  # when its last backward is there for the stage before

    def turn(self, turn: int, segment: range) -> None:
        """On each stage the forward of round ``turn`` and the backward that comes behind it."""
        free, sent = self.free, self.sent
        entering = self.entries[turn] if turn < segment.stop else None
        arrived = 0.0
        leaving = turn - len(free)
        for stage, at in enumerate(free):
            leaving += 1
            if entering is not None:
                at = max(at, arrived)
                entering.forward_starts[stage] = at
                at += entering.forward[stage]
                arrived = at + entering.hop
            if segment.start <= leaving < segment.stop:
                entry = self.entries[leaving]
                at = max(at, sent[stage + 1])
                entry.backward_starts[stage] = at
                at += entry.backward[stage]
                sent[stage] = at + entry.hop_back
                at += entry.step[stage]
            free[stage] = at

    def wait(self, until: Sequence[float]) -> None:
        """Hold each stage's next action back."""
        self.free = list(map(max, self.free, until))


def _ends(times: Sequence[PlaceTimes], grid: Grid, segment: range) -> set[int]:
    """The rounds of a segment that complete a step."""
    return {
        round_
        for round_ in segment
        if any(place is not None and times[place].completes for place in grid.rounds[round_])
    }


def _play(pipelines: Sequence[_Pipeline], segment: range, stages: int, ends: set[int]) -> None:
    """Take the rounds of one segment through all pipelines, and drain them."""
    done = {round_: [0.0] * stages for round_ in ends}
    for turn in range(segment.start, segment.stop + stages - 1):
        # F(turn) may be the first of a step that follows one of round turn - S.
        if turn < segment.stop and turn - stages in done:
            for pipeline in pipelines:
                pipeline.wait(done[turn - stages])
        for pipeline in pipelines:
            pipeline.turn(turn, segment)
        for stage in range(stages) if done else ():
            if (round_ := turn - stages + 1 + stage) in done:
                done[round_][stage] = max(pipeline.free[stage] for pipeline in pipelines)
    drained = [max(pipeline.free[stage] for pipeline in pipelines) for stage in range(stages)]
    for pipeline in pipelines:
        pipeline.wait(drained)


def _check(
    times: Sequence[PlaceTimes], stages: int, replicas: int, flush_after: Collection[int]
) -> None:
    for name, value in (("stages", stages), ("replicas", replicas)):
        if value < 1:
            raise PlanError(f"{name} is {value}; it must be an integer of at least 1.")
    for index, cost in enumerate(times):
        counts = {len(cost.forward), len(cost.backward), len(cost.step)}
        sizes = {len(cost.held_bytes), len(cost.working_bytes)}
        if counts != {stages} or not sizes <= {0, stages}:
            raise PlanError(
                f"place {index}: its times or bytes are of another number of stages than {stages}; "
                "make them with the number of stages that is simulated."
            )
    outside = sorted(place for place in flush_after if not 0 <= place < len(times))
    if outside:
        raise PlanError(
            f"flush after the places {outside}; the plan has the places 0 to {len(times) - 1}."
        )
