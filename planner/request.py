"""What a planner in another process is asked, and what it answers: a line of JSON each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import cast

from lorafusion.errors import PlanError
from lorafusion.planner import fields
from lorafusion.planner.plan import Limits, Plan
from lorafusion.planner.queue import Batch, JobQueue
from lorafusion.planner.schedule import Policy
from lorafusion.planner.search import EFFORT
from lorafusion.planner.windows import next_window

__all__ = ["Request", "read_answer", "write_error"]

FORMAT = 1
"""Version of a request's JSON form."""

_ERROR = '{"error":'
_LEAST = {"samples": 0, "lengths": 1, "labelled": 0, "loads": 1}
_COUNTS = ("remaining_load", "remaining_steps", "ready_at", "rank")
_NUMBERS = ("weight", "served")


@dataclass(frozen=True, slots=True)
class Request:
    """Arguments of :func:`lorafusion.planner.windows.next_window`."""

    queues: tuple[JobQueue, ...]
    limits: Limits
    max_places: int
    policy: Policy = "makespan"
    effort: int = EFFORT

    def plan(self) -> Plan:
        """The window that is asked for.

        Raises:
            PlanError: As :func:`lorafusion.planner.windows.next_window`.
        """
        return next_window(
            self.queues,
            self.limits,
            max_places=self.max_places,
            policy=self.policy,
            effort=self.effort,
        )

    def to_json(self) -> str:
        """One line of ASCII."""
        document = {
            "format": FORMAT,
            "limits": asdict(self.limits),
            "max_places": self.max_places,
            "policy": self.policy,
            "effort": self.effort,
            "queues": [_queue_fields(queue) for queue in self.queues],
        }
        return json.dumps(document, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Request:
        """Read what :meth:`to_json` wrote.

        Raises:
            PlanError: ``text`` is something else; says which field, and what it may hold.
        """
        parsed = fields.parse(text, "a request")
        names = ("format", "limits", "max_places", "policy", "effort", "queues")
        found = fields.mapping(parsed, "the request", names)
        if found["format"] != FORMAT:
            raise fields.wrong("request: format", found["format"], str(FORMAT))
        queues = enumerate(fields.items(found["queues"], "request: queues"))
        return cls(
            queues=tuple(_read_queue(value, f"request: queues[{i}]") for i, value in queues),
            limits=Limits.from_fields(found["limits"], "request: limits"),
            max_places=fields.integer(found["max_places"], "request: max_places", least=1),
            # next_window says what it may be.
            policy=cast("Policy", fields.text(found["policy"], "request: policy")),
            effort=fields.integer(found["effort"], "request: effort", least=0),
        )


def write_error(message: str) -> str:
    """The answer to a request that no plan can be made for."""
    return f"{_ERROR}{json.dumps(message)}}}"


def read_answer(line: str) -> Plan:
    """The plan of an answer: the line of a plan, or of :func:`write_error`.

    Raises:
        PlanError: What the planner raised; or the line is no answer.
    """
    if line.startswith(_ERROR):
        found = fields.mapping(fields.parse(line, "an answer"), "the answer", ("error",))
        raise PlanError(fields.text(found["error"], "answer: error"))
    return Plan.from_json(line)


def _queue_fields(queue: JobQueue) -> dict[str, object]:
    return {
        "name": queue.name,
        **{name: getattr(queue, name) for name in (*_COUNTS, *_NUMBERS)},
        "batches": [_batch_fields(batch) for batch in queue.batches],
        "evals": [_batch_fields(batch) for batch in queue.evals.values()],
    }


def _batch_fields(batch: Batch) -> dict[str, object]:
    """Columns that are the lengths are left out, as they are where loads are tokens."""
    found: dict[str, object] = {"step": batch.step, "samples": batch.samples}
    found["lengths"] = batch.lengths
    for name in ("labelled", "loads"):
        if (column := getattr(batch, name)) != batch.lengths:
            found[name] = column
    if batch.started:
        found["started"] = True
    return found


def _read_queue(value: object, where: str) -> JobQueue:
    names = ("name", *_COUNTS, *_NUMBERS, "batches", "evals")
    found = fields.mapping(value, where, names)
    evals = _read_batches(found, where, "evals")
    counts = {n: fields.integer(found[n], f"{where}.{n}", least=0) for n in _COUNTS}
    numbers = {n: fields.number(found[n], f"{where}.{n}") for n in _NUMBERS}
    by_step = {batch.step: batch for batch in evals}
    if len(by_step) < len(evals):
        steps = [batch.step for batch in evals]
        raise fields.wrong(f"{where}.evals", steps, "at most one batch of a step")
    return JobQueue(
        name=fields.text(found["name"], f"{where}.name"),
        batches=tuple(_read_batches(found, where, "batches")),
        evals=by_step,
        remaining_load=counts["remaining_load"],
        remaining_steps=counts["remaining_steps"],
        ready_at=counts["ready_at"],
        rank=counts["rank"],
        weight=numbers["weight"],
        served=numbers["served"],
    )


def _read_batches(queue: Mapping[str, object], where: str, name: str) -> list[Batch]:
    batches = enumerate(fields.items(queue[name], f"{where}.{name}"))
    return [_read_batch(value, f"{where}.{name}[{index}]") for index, value in batches]


def _read_batch(value: object, where: str) -> Batch:
    optional = ("labelled", "loads", "started")
    found = fields.mapping(value, where, ("step", "samples", "lengths"), optional=optional)
    columns = {
        name: fields.integers(found[name], f"{where}.{name}", least=least)
        for name, least in _LEAST.items()
        if name in found
    }
    started = found.get("started", False)
    if not isinstance(started, bool):
        raise fields.wrong(f"{where}.started", started, "true or false")
    step = fields.integer(found["step"], f"{where}.step", least=0)
    return Batch(step, started=started, **columns)
