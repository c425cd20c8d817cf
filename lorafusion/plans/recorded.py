"""Reads what the ranks of a run recorded: the files of :mod:`lorafusion.training.trace`.

Of each file the last session is read. A last line that was cut off is left out. With replicas the
first one is read, as if it were alone: its places are numbered by turns.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from lorafusion.errors import OutputError, PlanError
from lorafusion.planner.plan import FORMAT, Plan

__all__ = ["Recording", "Span", "read_recording"]

MOST_SPANS = 200_000
"""Of all ranks together; of a longer run the first places are read. A span takes 300 bytes."""

# Spans of a place on one rank: forward, backward, two waits, two sends, a step.
_SPANS_OF_PLACE = 7
_BESIDE = ("send", "wait")
_SPANS = ("forward", "backward", "step", *_BESIDE)


@dataclass(frozen=True, slots=True)
class Span:
    """What a rank was in, in seconds on rank 0's clock. Spans may lie inside one another."""

    kind: str
    place: int
    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Recording:
    """What was read.

    Attributes:
        session: The session, as rank 0 counts.
        plan: The places that were run, in order, without those that were not read.
        places: How many were run.
        spans: Of each rank, in the order in which they ended.
    """

    session: int
    plan: Plan
    places: int
    spans: tuple[tuple[Span, ...], ...]


def read_recording(folder: Path, stages: int, *, most_spans: int = MOST_SPANS) -> Recording:
    """Read the files of all ranks.

    Args:
        folder: That of the traces.
        stages: Pipeline stages.
        most_spans: Roughly; of a longer run the first places are read.

    Raises:
        OutputError: A file is missing or holds something else; says which, and at which line.
    """
    most = max(1, most_spans // (stages * _SPANS_OF_PLACE))
    session, plan, places = _places(folder / "places.jsonl", most)
    ranks = [folder / f"rank-{stage}.jsonl" for stage in range(stages)]
    replicas = plan.limits.replicas
    if replicas > 1:
        limits = replace(plan.limits, replicas=1)
        plan = replace(plan, limits=limits, places=plan.places[::replicas])
        places = -(-places // replicas)
    spans = tuple(tuple(_spans(path, len(plan.places), stages, replicas)) for path in ranks)
    return Recording(session, plan, places, spans)


def _places(path: Path, most: int) -> tuple[int, Plan, int]:
    header: dict[str, Any] = {}
    found: dict[int, Any] = {}
    count = 0
    for number, line in _last_session(path):
        try:
            if line.get("kind") == "session":
                header = line
                continue
            place = int(line.pop("number"))
        except (KeyError, ValueError, TypeError) as error:
            raise _wrong(path, number, "a place with its number") from error
        count = max(count, place + 1)
        if place < most:
            found[place] = line
    gap = next((number for number in range(min(count, most)) if number not in found), None)
    if gap is not None:
        raise OutputError(f"{path}: place {gap} is missing, but a later one is there.")
    places = [found[number] for number in sorted(found)]
    document = {"format": FORMAT, "limits": header.get("limits"), "places": places, "alone": []}
    try:
        return int(header["session"]), Plan.from_json(json.dumps(document)), count
    except (PlanError, KeyError) as error:
        raise OutputError(f"{path}: {error}") from error


def _spans(path: Path, places: int, stages: int, replicas: int) -> Iterator[Span]:
    """Spans of the first places, in rank 0's time."""
    offset = 0.0
    found: list[Span] = []
    for number, line in _last_session(path):
        kind = line.get("kind")
        try:
            if kind == "offset":
                offset = float(line["offset_s"])
            if kind not in _SPANS:
                continue
            times = float(line["start"]), float(line["end"])
            span = Span(kind, int(line["place"]) // replicas, str(line["name"]), *times)
        except (KeyError, ValueError, TypeError) as error:
            raise _wrong(path, number, "a span with place, name, start and end") from error
        # While a place goes backwards, its rank is up to S places further on.
        if span.place > places + 2 * stages:
            break
        if span.place < places or kind in _BESIDE:
            found.append(span)
    return (replace(span, start=span.start + offset, end=span.end + offset) for span in found)


def _last_session(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbers and contents of the lines of the last session, its header first."""
    begins = _last_header(path)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number < begins or not line.endswith(b"\n"):
                continue
            try:
                parsed: object = json.loads(line)
            except ValueError as error:
                raise _wrong(path, number, "JSON") from error
            if not isinstance(parsed, dict):
                raise _wrong(path, number, "a JSON object")
            yield number, cast("dict[str, Any]", parsed)


def _last_header(path: Path) -> int:
    """The number of its line."""
    begins = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.startswith(b'{"kind":"session"') and line.endswith(b"\n"):
                    begins = number
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error}") from error
    if not begins:
        raise OutputError(f"{path} holds no session: it is no trace of a rank, or an empty one.")
    return begins


def _wrong(path: Path, number: int, allowed: str) -> OutputError:
    return OutputError(f"{path}, line {number}: allowed is {allowed}.")
