"""What the page's scripts read: places, lanes and the strip as short lists of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

from lorafusion.planner.plan import Place, Plan
from lorafusion.planner.simulate import Simulation
from lorafusion.plans import colours
from lorafusion.plans.excerpt import Excerpt, Lane
from lorafusion.plans.overview import overview
from lorafusion.plans.summary import PlanSummary

__all__ = ["Entry", "packed_lane", "page_data"]

Entry: TypeAlias = tuple[str, int, float, float]
"""Letter, place, start and end of a block; see KINDS in gantt_model.js."""

# Bins of the strip, and the most shares of jobs in all of them together.
_BINS, _MOST_SHARES = 400, 25_600
# Rounding moves an action's edges by less than 1/1000 of a mean action.
_TICKS = 1000
_KINDS = {"train": 0, "eval": 1, "noop": 2}
_LETTERS = {"forward": "f", "backward": "b", "step": "s"}


def page_data(
    plan: Plan, simulation: Simulation, summary: PlanSummary, excerpt: Excerpt
) -> dict[str, Any]:
    """What gantt_model.js unpacks, as JSON values.

    Args:
        plan: The plan.
        simulation: Of this plan.
        summary: Of both; its jobs are named by their index from here on.
        excerpt: What the lanes show.
    """
    indices = {job.name: index for index, job in enumerate(summary.jobs)}
    bins = max(40, min(_BINS, 2 * len(plan.places), _MOST_SHARES // max(1, len(indices))))
    strip = overview(plan, simulation, bins)
    actions = sum(len(lane.actions) for lane in excerpt.lanes)
    tick = _tick(excerpt.end * len(excerpt.lanes) / max(1, actions))
    job_range = range(len(colours.PALETTE))
    return {
        "unit": summary.unit,
        "makespan": summary.makespan,
        "end": excerpt.end,
        "tick": tick,
        "capacity": summary.capacity,
        "allReplicas": summary.replicas,
        "jobs": [job.name for job in summary.jobs],
        "palette": {
            "base": [colours.base(i) for i in job_range],
            "forward": [colours.forward(i) for i in job_range],
            "backward": [colours.backward(i) for i in job_range],
        },
        "places": [_place(place, plan, indices) for place in plan.places[: excerpt.places]],
        "lanes": [packed_lane(lane, tick) for lane in excerpt.lanes],
        "overview": {"width": strip.width, "bins": [_bin(shares) for shares in strip.bins]},
    }


def _tick(mean: float) -> float:
    """A power of ten, so that times are short numbers."""
    return 10.0 ** math.floor(math.log10(mean / _TICKS)) if mean > 0 else 1.0


def _place(place: Place, plan: Plan, indices: dict[str, int]) -> list[int]:
    """Kind, load, then six numbers a segment: the script's SEGMENT_FIELDS."""
    done = set(place.completes)
    flat = [_KINDS[place.kind], place.load(plan.limits)]
    for segment in place.segments:
        flat += [indices[segment.job], segment.step, len(segment.samples), sum(segment.lengths)]
        flat += [sum(segment.loads) + plan.limits.segment_load]
        flat += [int((segment.job, segment.step) in done)]
    return flat


def packed_lane(lane: Lane, tick: float, beside: Sequence[Entry] = ()) -> dict[str, Any]:
    """A lane's blocks, with what it does beside its actions in the gaps between them."""
    actions = [(_LETTERS[a.kind], a.place, a.start_s, a.end_s) for a in lane.actions]
    entries = sorted([*actions, *beside], key=lambda entry: entry[2]) if beside else actions
    edges = [round(time / tick) for *_, start, end in entries for time in (start, end)]
    steps = [after - before for before, after in pairwise([0, *edges])]
    return {
        "replica": lane.replica,
        "stage": lane.stage,
        "kinds": "".join(letter for letter, *_ in entries),
        "places": list(_differences(entries)),
        "gaps": steps[::2],
        "spans": steps[1::2],
        "noops": [[place, round(time / tick) * tick] for place, time in lane.noops],
    }


def _differences(entries: Iterable[Entry]) -> Iterator[int]:
    """Places as differences to the last block of the same letter: mostly 1, so short."""
    last: dict[str, int] = {}
    for letter, place, *_ in entries:
        yield place - last.get(letter, 0)
        last[letter] = place


def _bin(shares: dict[int, float]) -> list[int]:
    """Job and thousandths of the time, in turn."""
    return [
        number
        for job, share in shares.items()
        if round(1000 * share)
        for number in (job, round(1000 * share))
    ]
