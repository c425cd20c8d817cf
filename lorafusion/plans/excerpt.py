"""Which part of a plan a drawing shows, lane by lane: all of it, or its first places."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby

from lorafusion.planner.plan import Limits, Place, Plan
from lorafusion.planner.simulate import Action, Simulation

__all__ = ["Budget", "Excerpt", "Lane", "cut", "until"]


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that a drawing can hold.

    Attributes:
        places: Places.
        lanes: Stages of all replicas. Whole replicas are left out, but never the first.
        size: Sum over the places of what :meth:`cost` says.
        per_action: What an action adds to the size.
        per_segment: What a segment adds.
    """

    places: int
    lanes: int
    size: float = float("inf")
    per_action: float = 1.0
    per_segment: float = 0.0

    def cost(self, place: Place, limits: Limits) -> float:
        """What a place adds to the size. Every replica takes the steps; a no-op's mark counts."""
        actions = 2 if place.kind == "train" else 1
        if place.kind == "train" and place.completes:
            actions += limits.replicas
        return self.per_action * actions * limits.stages + self.per_segment * len(place.segments)


@dataclass(frozen=True, slots=True)
class Lane:
    """One stage of one replica.

    Attributes:
        replica: From 0.
        stage: From 0.
        actions: In the order in which they are done.
        noops: (place, time) of each no-op, the time in the gap in which its forward would stand.
    """

    replica: int
    stage: int
    actions: tuple[Action, ...]
    noops: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Excerpt:
    """What is drawn.

    Attributes:
        places: The first so many places; of those of a replica that is behind, the last may begin
            after ``end``.
        replicas: The first so many replicas.
        end: Time up to which every action of these replicas is here.
        lanes: By replica, then by stage.
        whole: Whether nothing is left out.
    """

    places: int
    replicas: int
    end: float
    lanes: tuple[Lane, ...]
    whole: bool

    def remark(self, plan: Plan) -> str:
        """What is here, such as ``places 0 to 89 of 400``; empty where nothing is left out."""
        parts: list[str] = []
        if self.places < len(plan.places):
            parts.append(f"{_first('place', self.places)} of {len(plan.places):,}")
        if self.replicas < plan.limits.replicas:
            parts.append(f"{_first('replica', self.replicas)} of {plan.limits.replicas:,}")
        return " and ".join(parts)


def cut(plan: Plan, simulation: Simulation, budget: Budget) -> Excerpt:
    """The part that ``budget`` allows: at least one place of each replica, and one replica."""
    stages, replicas = plan.limits.stages, plan.limits.replicas
    sizes = accumulate(budget.cost(place, plan.limits) for place in plan.places)
    fitting = sum(size <= budget.size for size in sizes)
    places = min(fitting, budget.places)
    if places < len(plan.places):
        # Whole rounds, at least one: the replicas begin together.
        places = min(len(plan.places), max(1, places // replicas) * replicas)
    drawn = min(replicas, max(1, budget.lanes // stages))
    lanes: defaultdict[tuple[int, int], list[Action]] = defaultdict(list)
    for action in simulation.actions:
        if action.replica < drawn:
            lanes[action.replica, action.stage].append(action)
    found = [
        _lane(plan, (replica, stage), lanes[replica, stage], places)
        for replica in range(drawn)
        for stage in range(stages)
    ]
    late = [a.start_s for lane in found for a in lane.actions if a.place >= places]
    if late:
        # All lanes stop where the first place that is left out begins: else the pipeline would
        # seem to drain there.
        found = [until(lane, min(late)) for lane in found]
        places = 1 + max(action.place for lane in found for action in lane.actions)
    return Excerpt(
        places=places,
        replicas=drawn,
        end=min(late, default=simulation.makespan_s),
        lanes=tuple(found),
        whole=places == len(plan.places) and drawn == replicas,
    )


def _first(what: str, number: int) -> str:
    return f"{what}s 0 to {number - 1:,}" if number > 1 else f"{what} 0"


def _lane(plan: Plan, at: tuple[int, int], actions: Sequence[Action], places: int) -> Lane:
    replica, stage = at
    noops = [
        index
        for index in range(replica, places, plan.limits.replicas)
        if plan.places[index].kind == "noop"
    ]
    return Lane(replica, stage, tuple(actions), tuple(_gaps(plan, stage, actions, noops)))


def until(lane: Lane, end: float) -> Lane:
    """What of a lane begins before ``end``."""
    return replace(
        lane,
        actions=tuple(action for action in lane.actions if action.start_s < end),
        noops=tuple(entry for entry in lane.noops if entry[1] < end),
    )


def _gaps(
    plan: Plan, stage: int, actions: Sequence[Action], noops: Sequence[int]
) -> Iterator[tuple[int, float]]:
    """Each no-op with the time of its mark.

    The forward of round k comes behind the backward of round k-(S-s): the mark stands in the gap
    that follows what is in front of it there. Several in one gap share it evenly.
    """
    replicas, lag = plan.limits.replicas, plan.limits.stages - stage
    forwards = [(a.place, index) for index, a in enumerate(actions) if a.kind == "forward"]
    position = 0
    positions: list[tuple[int, int]] = []
    for noop in noops:
        # After a flush there are forwards in front of it that come later than that backward.
        before = bisect_left(forwards, (noop, 0))
        position = max(position, forwards[before - 1][1] + 1 if before else 0)
        while position < len(actions):
            action = actions[position]
            reached = noop if action.kind == "forward" else noop - lag * replicas
            if action.place > reached:
                break
            position += 1
        positions.append((position, noop))
    for at, group in groupby(positions, key=lambda entry: entry[0]):
        places = [place for _, place in group]
        start = actions[at - 1].end_s if at else 0.0
        end = actions[at].start_s if at < len(actions) else start
        for index, place in enumerate(places, start=1):
            yield place, start + (end - start) * index / (len(places) + 1)
