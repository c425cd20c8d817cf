"""Who keeps the stages busy over the whole run: shares of time in equal bins."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from lorafusion.planner.plan import Place, Plan
from lorafusion.planner.simulate import Simulation
from lorafusion.plans.summary import job_names

__all__ = ["STEP", "Overview", "overview", "shares"]

STEP = -1
"""Stands for the optimizer steps where else a job's index stands."""


@dataclass(frozen=True, slots=True)
class Overview:
    """The whole run in bins of equal time.

    Attributes:
        width: Time of a bin.
        bins: Of each bin, job index -> share of the time of all stages of all replicas. What is
            missing to 1 is idle time.
    """

    width: float
    bins: tuple[dict[int, float], ...]


def overview(plan: Plan, simulation: Simulation, count: int) -> Overview:
    """Divide the makespan into ``count`` bins. Jobs have the indices of ``job_names``."""
    width = simulation.makespan_s / count
    if width <= 0:
        return Overview(0.0, ())
    busy = _busy(simulation, width, count)
    total = width * plan.limits.stages * plan.limits.replicas
    indices = {name: index for index, name in enumerate(job_names(plan))}
    bins: list[dict[int, float]] = []
    for by_place in busy:
        sums: defaultdict[int, float] = defaultdict(float)
        for place, time in by_place.items():
            if place == STEP:
                sums[STEP] += time / total
                continue
            for job, share in shares(plan.places[place], plan, indices):
                sums[job] += time * share / total
        bins.append(dict(sorted(sums.items())))
    return Overview(width, tuple(bins))


def shares(place: Place, plan: Plan, indices: dict[str, int]) -> Iterator[tuple[int, float]]:
    """The place's jobs, by index, with their shares of its load, which add up to 1."""
    total = place.load(plan.limits)
    for segment in place.segments:
        yield indices[segment.job], (sum(segment.loads) + plan.limits.segment_load) / total


def _busy(simulation: Simulation, width: float, count: int) -> list[defaultdict[int, float]]:
    """Of each bin, place -> time in it, over all lanes. Steps are one place, STEP."""
    bins: list[defaultdict[int, float]] = [defaultdict(float) for _ in range(count)]
    for action in simulation.actions:
        place = STEP if action.kind == "step" else action.place
        start, end = action.start_s, action.end_s
        index, last = min(int(start / width), count - 1), min(int(end / width), count - 1)
        while index < last:
            edge = (index + 1) * width
            bins[index][place] += edge - start
            start, index = edge, index + 1
        bins[index][place] += end - start
    return bins
