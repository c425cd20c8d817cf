"""A plan's simulation as a Chrome trace, for https://ui.perfetto.dev or chrome://tracing.

The form is Google's "Trace Event Format": a process per replica, a thread per stage, complete
events (``ph: "X"``) with times in microseconds, instants for no-ops, and metadata that names them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorafusion.files import write_text_atomic
from lorafusion.planner.plan import Place, Plan
from lorafusion.planner.simulate import Action, Simulation
from lorafusion.plans.excerpt import Budget, Excerpt, Lane, cut
from lorafusion.plans.quantities import Unit
from lorafusion.plans.summary import PlanSummary

__all__ = ["action_name", "arguments", "metadata", "trace", "write"]

MOST_EVENTS = 100_000
"""Of a longer plan the first places are written: 380 bytes an event with four jobs, 38 MB."""

# Microseconds of one unit of time. A load unit is shown as a microsecond.
_MICROSECONDS: dict[Unit, float] = {"s": 1e6, "load": 1.0}
# Names of jobs in an event's name; all of them stand in its arguments.
_NAMED = 3


def write(path: Path, plan: Plan, simulation: Simulation, summary: PlanSummary) -> None:
    """Write the trace."""
    write_text_atomic(path, trace(plan, simulation, summary))


def trace(
    plan: Plan, simulation: Simulation, summary: PlanSummary, *, most_events: int = MOST_EVENTS
) -> str:
    """The trace as JSON.

    Args:
        plan: The plan.
        simulation: Of this plan.
        summary: Of both.
        most_events: Of a longer plan the first places are written, and ``otherData`` says so.
    """
    budget = Budget(places=len(plan.places), lanes=most_events, size=most_events)
    excerpt = cut(plan, simulation, budget)
    events = list(_metadata(plan, excerpt))
    for lane in excerpt.lanes:
        events += _lane_events(plan, lane, _MICROSECONDS[summary.unit])
    document = {
        "displayTimeUnit": "ms",
        "otherData": _facts(plan, summary, excerpt),
        "traceEvents": events,
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _facts(plan: Plan, summary: PlanSummary, excerpt: Excerpt) -> dict[str, Any]:
    unit = {"s": "predicted microseconds", "load": "load units, shown as microseconds"}
    facts = {what: value for what, value, _ in summary.figures()}
    written = excerpt.remark(plan)
    return {
        "title": summary.title,
        "times": unit[summary.unit],
        **facts,
        **({"written": written} if written else {}),
    }


def _metadata(plan: Plan, excerpt: Excerpt) -> Iterator[dict[str, Any]]:
    for replica in range(excerpt.replicas):
        yield metadata("process_name", replica, 0, {"name": f"replica {replica}"})
        yield metadata("process_sort_index", replica, 0, {"sort_index": replica})
        for stage in range(plan.limits.stages):
            yield metadata("thread_name", replica, stage, {"name": f"stage {stage}"})
            yield metadata("thread_sort_index", replica, stage, {"sort_index": stage})


def metadata(name: str, process: int, thread: int, args: dict[str, Any]) -> dict[str, Any]:
    """An event that says something of a process or a thread."""
    return {"ph": "M", "name": name, "pid": process, "tid": thread, "args": args}


def _lane_events(plan: Plan, lane: Lane, microseconds: float) -> Iterator[dict[str, Any]]:
    at = {"pid": lane.replica, "tid": lane.stage}
    for action in lane.actions:
        place = plan.places[action.place]
        start, end = (round(time * microseconds, 3) for time in (action.start_s, action.end_s))
        yield {
            "ph": "X",
            "name": action_name(action, place),
            "cat": "eval" if place.kind == "eval" else action.kind,
            **at,
            "ts": start,
            "dur": round(end - start, 3),
            "args": arguments(plan, action, place),
        }
    for index, time in lane.noops:
        name, ts = f"no-op {index}", round(time * microseconds, 3)
        yield {"ph": "i", "name": name, "cat": "no-op", "s": "t", **at, "ts": ts}


def action_name(action: Action, place: Place) -> str:
    """Such as ``forward 12: job-a, job-b``; a step names the jobs that it steps."""
    jobs = [segment.job for segment in place.segments]
    if action.kind == "step":
        jobs = [job for job, _ in place.completes]
    kind = "eval" if place.kind == "eval" else action.kind
    more = f" +{len(jobs) - _NAMED}" if len(jobs) > _NAMED else ""
    return f"{kind} {action.place}: {', '.join(jobs[:_NAMED])}{more}"


def arguments(plan: Plan, action: Action, place: Place) -> dict[str, Any]:
    """What is in an action's place, or of a step which steps it is."""
    completes = [f"{job} step {step}" for job, step in place.completes]
    if action.kind == "step":
        return {"place": action.place, "steps": completes}
    load = place.load(plan.limits)
    jobs = {
        segment.job: f"step {segment.step}, {len(segment.samples)} samples, "
        f"{sum(segment.lengths)} tokens"
        for segment in place.segments
    }
    found = {
        "place": action.place,
        "tokens": place.tokens,
        "load": load,
        "fill": round(load / plan.limits.capacity, 4),
        "jobs": jobs,
    }
    return {**found, "completes": completes} if completes else found
