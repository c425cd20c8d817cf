"""What a pipeline did: the ranks' spans, taken apart so that a stage does one thing at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from lorafusion.errors import OutputError
from lorafusion.planner.simulate import Action, Simulation
from lorafusion.plans.recorded import Recording, Span

__all__ = ["BUSY", "Beside", "Measured", "exclusive", "measured"]

BUSY = ("forward", "backward", "step")
"""Kinds of spans in which a stage computes."""


@dataclass(frozen=True, slots=True)
class Beside:
    """A time in which a stage did not compute.

    Attributes:
        stage: From 0.
        kind: ``wait`` or ``send``.
        place: As recorded.
        name: What was waited for.
        start_s: Seconds from the start of the first forward.
        end_s: The same.
    """

    stage: int
    kind: str
    place: int
    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Measured:
    """A run as it was.

    Attributes:
        simulation: In the form of a simulation, without bytes. An action that was interrupted by
            another stands there in pieces.
        beside: Waits and sends, stage by stage, in order.
        origin_s: The start of the first forward on rank 0's clock.
    """

    simulation: Simulation
    beside: tuple[Beside, ...]
    origin_s: float


def measured(recording: Recording) -> Measured:
    """What the ranks recorded, from the first start of an action to the last end of one.

    Raises:
        OutputError: Nothing was computed.
    """
    lanes = [list(exclusive(spans)) for spans in recording.spans]
    busy = [span for lane in lanes for span in lane if span.kind in BUSY]
    if not busy:
        raise OutputError("Nothing is in the traces: no stage began a place.")
    origin = min(span.start for span in busy)
    makespan = max(span.end for span in busy) - origin
    actions = [
        [
            Action(
                replica=0,
                stage=stage,
                kind=span.kind,
                place=span.place,
                start_s=span.start - origin,
                end_s=span.end - origin,
            )
            for span in lane
            if span.kind in BUSY
        ]
        for stage, lane in enumerate(lanes)
    ]
    beside = [
        Beside(stage, span.kind, span.place, span.name, max(0.0, start), min(end, makespan))
        for stage, lane in enumerate(lanes)
        for span in lane
        if span.kind not in BUSY
        and (start := span.start - origin) < makespan
        and (end := span.end - origin) > 0
    ]
    return Measured(_as_simulation(actions, makespan), tuple(beside), origin)


def exclusive(spans: Iterable[Span]) -> Iterator[Span]:
    """Spans that do not overlap, in order: the innermost at each time, outer ones in pieces."""
    inside: list[Span] = []
    time = 0.0

    def until(end: float) -> Iterator[Span]:
        """What the innermost does up to ``end``."""
        nonlocal time
        if inside and end > time:
            yield replace(inside[-1], start=time, end=end)
        time = max(time, end)

    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        while inside and inside[-1].end <= span.start:
            yield from until(inside[-1].end)
            inside.pop()
        yield from until(span.start)
        inside.append(span)
        time = span.start
    while inside:
        yield from until(inside[-1].end)
        inside.pop()


def _as_simulation(lanes: Sequence[Sequence[Action]], makespan: float) -> Simulation:
    busy = [sum(action.end_s - action.start_s for action in lane) for lane in lanes]
    full_busy = full = 0.0
    for lane in lanes:
        first = next((i for i, action in enumerate(lane) if action.kind == "backward"), len(lane))
        last = max((i for i, action in enumerate(lane) if action.kind == "forward"), default=-1)
        if first < last:
            full += lane[last].end_s - lane[first].start_s
            full_busy += sum(action.end_s - action.start_s for action in lane[first : last + 1])
    return Simulation(
        actions=tuple(action for lane in lanes for action in lane),
        makespan_s=makespan,
        busy_s=tuple(busy),
        bubble=max(0.0, 1 - sum(busy) / (len(lanes) * makespan)) if makespan else 0.0,
        bubble_without_ramp=max(0.0, 1 - full_busy / full) if full else 0.0,
        peak_bytes=(0.0,) * len(lanes),
    )
