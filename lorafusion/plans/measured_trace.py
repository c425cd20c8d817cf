"""A run as a Chrome trace, for https://ui.perfetto.dev: a process per rank.

The form is that of :mod:`lorafusion.plans.chrome_trace`. A rank's first thread is what it computes,
the second one what it sends and waits for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from lorafusion.planner.simulate import Action
from lorafusion.plans.chrome_trace import action_name, arguments, metadata
from lorafusion.plans.measured import Beside, Measured
from lorafusion.plans.recorded import Recording

__all__ = ["measured_trace"]

MOST_EVENTS = 25_000
"""Of all ranks; 300 bytes an event."""

_THREADS = ("computes", "sends and waits")


def measured_trace(recording: Recording, run: Measured, *, most_events: int = MOST_EVENTS) -> str:
    """The trace as JSON; of a long run what began first, and ``otherData`` says so.

    Args:
        recording: What the ranks recorded.
        run: Of this recording.
        most_events: As it says.
    """
    everything: list[Action | Beside] = [*run.simulation.actions, *run.beside]
    everything.sort(key=lambda entry: entry.start_s)
    events = list(_metadata(len(recording.spans)))
    events += [_event(recording, entry) for entry in everything[:most_events]]
    facts: dict[str, Any] = {
        "session": recording.session,
        "times": "microseconds from the start of the first forward, on rank 0's clock",
        "places": recording.places,
    }
    read = len(recording.plan.places)
    if len(everything) > most_events or read < recording.places:
        until = everything[:most_events][-1].start_s
        facts["written"] = f"the first {until:.3f} s"
    document = {"displayTimeUnit": "ms", "otherData": facts, "traceEvents": events}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _metadata(ranks: int) -> Iterator[dict[str, Any]]:
    for rank in range(ranks):
        yield metadata("process_name", rank, 0, {"name": f"rank {rank}: stage {rank}"})
        yield metadata("process_sort_index", rank, 0, {"sort_index": rank})
        for thread, name in enumerate(_THREADS):
            yield metadata("thread_name", rank, thread, {"name": name})
            yield metadata("thread_sort_index", rank, thread, {"sort_index": thread})


def _event(recording: Recording, entry: Action | Beside) -> dict[str, Any]:
    start, end = (round(1e6 * time, 3) for time in (entry.start_s, entry.end_s))
    times = {"ts": start, "dur": round(end - start, 3)}
    if isinstance(entry, Beside):
        name = f"wait for {_what(entry.name)}" if entry.kind == "wait" else "send"
        at = {"pid": entry.stage, "tid": 1}
        args = {"place": entry.place}
        return {"ph": "X", "name": name, "cat": entry.kind, **at, **times, "args": args}
    place = recording.plan.places[entry.place]
    return {
        "ph": "X",
        "name": action_name(entry, place),
        "cat": "eval" if place.kind == "eval" else entry.kind,
        "pid": entry.stage,
        "tid": 0,
        **times,
        "args": arguments(recording.plan, entry, place),
    }


def _what(name: str) -> str:
    """``forward of stage 0`` with an article; ``the plan`` has one."""
    return name if name.startswith("the ") else f"the {name}"
