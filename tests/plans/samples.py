"""A small plan whose every time can be checked by hand, and larger ones of random numbers."""

from __future__ import annotations

import random
from dataclasses import replace

from lorafusion.planner.place_times import PlaceTimes, load_times
from lorafusion.planner.plan import Limits, Place, PlaceKind, Plan, PlannedSegment
from lorafusion.planner.simulate import Simulation, simulate

HOSTILE = '</script><b onclick="x">&amp;</title>'


def segment(job: str, step: int, *lengths: int) -> PlannedSegment:
    return PlannedSegment(job, step, tuple(range(len(lengths))), lengths)


# On stage 0: F0 0-40, F1 -140, F2 -190, B1 440-640, no-op, B2 -740, F4 -830, F5 -910, B4 1100-1280,
# B5 1340-1500. On stage 1: F0 40-80, F1 140-240, B1 -440, F2 -490, B2 -590, no-op, F4 830-920,
# B4 -1100, F5 -1180, B5 -1340. (Of a sample of n tokens the forward takes n, the backward 2n.)
SMALL = Plan(
    Limits(capacity=100, stages=2),
    (
        Place("eval", (segment("b", 0, 40),), (("b", 0),)),
        Place("train", (segment("a", 1, 60, 20), segment("b", 1, 20)), (("a", 1),)),
        Place("train", (segment("b", 1, 50),), (("b", 1),)),
        Place("noop"),
        Place("train", (segment("a", 2, 90),), (("a", 2),)),
        Place("train", (segment("c", 1, 80),), (("c", 1),)),
    ),
    alone=("c",),
)


def by_load(plan: Plan) -> Simulation:
    return simulate(load_times(plan), stages=plan.limits.stages, replicas=plan.limits.replicas)


def in_seconds(plan: Plan, *, load_s: float = 4e-6, step_s: float = 0.004) -> Simulation:
    """Steps take time, and microbatches hold 1 MiB a token."""
    stages = plan.limits.stages
    none = (0.0,) * stages
    times: list[PlaceTimes] = []
    for place in plan.places:
        forward, trains = load_s * place.load(plan.limits), place.kind == "train"
        times.append(
            PlaceTimes(
                forward=(forward,) * stages,
                backward=(2 * forward,) * stages if trains else none,
                step=(step_s * len(place.completes),) * stages if trains else none,
                held_bytes=(float(place.tokens << 20),) * stages,
                completes=trains and bool(place.completes),
            )
        )
    return simulate(times, stages=stages, replicas=plan.limits.replicas)


def large(places: int, *, stages: int, jobs: int = 5, segments: int = 3, replicas: int = 1) -> Plan:
    """Random microbatches with no-ops and evals between them; the order of steps is not kept."""
    rng = random.Random(places)
    found: list[Place] = []
    for index in range(places):
        if index % 17 == 11:
            found.append(Place("noop"))
            continue
        names = [f"job-{job}" for job in sorted(rng.sample(range(jobs), segments))]
        parts = tuple(segment(name, index, rng.randint(100, 900)) for name in names)
        kind: PlaceKind = "eval" if index % 13 == 5 else "train"
        found.append(Place(kind, parts, ((names[0], index),) if index % 3 == 0 else ()))
    limits = Limits(capacity=1000 * segments, stages=stages, replicas=replicas, segment_load=7)
    return Plan(limits, tuple(found))


def renamed(plan: Plan, names: dict[str, str]) -> Plan:
    """The plan with jobs called otherwise."""
    places = tuple(
        replace(
            place,
            segments=tuple(
                replace(part, job=names.get(part.job, part.job)) for part in place.segments
            ),
            completes=tuple((names.get(job, job), step) for job, step in place.completes),
        )
        for place in plan.places
    )
    return replace(plan, places=places, alone=tuple(names.get(job, job) for job in plan.alone))
