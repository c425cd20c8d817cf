"""Runs of a pipeline whose stages sleep, recorded by real traces: a thread per stage."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from lorafusion.planner.plan import Limits, Place, Plan
from lorafusion.planner.simulate import Simulation
from lorafusion.training.stage_times import StageTimes
from lorafusion.training.team import SpanKind
from lorafusion.training.trace import Trace
from lorafusion.training.trace_file import PlaceTrace
from tests.plans.samples import segment

STEP_S = 0.0005
TRANSFER_S = 0.0003


def sweep(places: int, stages: int = 4) -> Plan:
    """Four jobs that take turns, with an eval, and no-ops at the end as rank 0 sends them."""
    found: list[Place] = []
    for index in range(places):
        one, two = f"job-{index % 4}", f"job-{(index + 1) % 4}"
        step = index // 4 + 1
        parts = (segment(one, step, 60 + 7 * (index % 5), 30), segment(two, step, 40 + index % 9))
        found.append(Place("train", parts, ((one, step),) if index % 2 else ()))
        if index == places // 2:
            found.append(Place("eval", (segment("job-0", 2, 50, 50),), (("job-0", 2),)))
    found += [Place("noop")] * stages
    return Plan(Limits(capacity=200, stages=stages), tuple(found))


def record(folder: Path, plan: Plan, load_s: float = 4e-5) -> list[StageTimes]:
    """Run the plan: a forward sleeps ``load_s`` per load, a backward twice as long."""
    stages = plan.limits.stages
    traces = [Trace(folder, stage, stages) for stage in range(stages)]
    down: list[SimpleQueue[float]] = [SimpleQueue() for _ in range(stages)]
    up: list[SimpleQueue[float]] = [SimpleQueue() for _ in range(stages)]
    runs = [_Stage(trace, stage, plan, load_s, (down, up)) for stage, trace in enumerate(traces)]
    threads = [threading.Thread(target=run.run) for run in runs]
    for thread in threads:
        thread.start()
    places = PlaceTrace(folder, plan.limits)
    for number, place in enumerate(plan.places):
        places.ran(number, place)
    places.close()
    for thread in threads:
        thread.join()
    for trace in traces:
        trace.close()
    return [trace.summary() for trace in traces]


class _Stage:
    def __init__(
        self,
        trace: Trace,
        stage: int,
        plan: Plan,
        load_s: float,
        queues: tuple[list[SimpleQueue[float]], list[SimpleQueue[float]]],
    ) -> None:
        self.trace, self.stage, self.plan, self.load_s = trace, stage, plan, load_s
        self.down, self.up = queues
        self.last = stage == plan.limits.stages - 1
        self.position = 0

    def run(self) -> None:
        in_flight: deque[int] = deque()
        if self.stage:
            with self.trace.span("wait", 0, "the plan"):
                time.sleep(0.001)
        for number in range(len(self.plan.places)):
            self._forward(number)
            in_flight.append(number)
            if len(in_flight) >= self.plan.limits.stages - self.stage:
                self._backward(in_flight.popleft())
        while in_flight:
            self._backward(in_flight.popleft())

    def _forward(self, number: int) -> None:
        place = self.plan.places[number]
        if self.stage:
            self._wait(self.down[self.stage], f"forward of stage {self.stage - 1}")
            done = number - self.plan.limits.stages
            if done >= 0:
                self._step(done)
        self.position += 1
        if place.kind != "noop":
            self._work("forward", number, 1)
        if not self.last:
            self._send(self.down[self.stage + 1])

    def _backward(self, number: int) -> None:
        place = self.plan.places[number]
        if place.kind == "noop":
            return
        if not self.last:
            self._wait(self.up[self.stage], f"backward of stage {self.stage + 1}")
        if place.kind == "train":
            self._work("backward", number, 2)
        if self.stage:
            self._send(self.up[self.stage - 1])
        else:
            self._step(number)

    def _work(self, kind: SpanKind, number: int, times: int) -> None:
        place = self.plan.places[number]
        name = "+".join(f"{part.job}#{part.step}" for part in place.segments)
        with self.trace.span(kind, number, name):
            time.sleep(times * self.load_s * place.load(self.plan.limits))

    def _step(self, number: int) -> None:
        place = self.plan.places[number]
        for job, step in place.completes if place.kind == "train" else ():
            self.trace.stepped(number, job, step, (1, 2))
            with self.trace.span("step", number, f"{job}#{step}"):
                time.sleep(STEP_S)

    def _wait(self, queue: SimpleQueue[float], what: str) -> None:
        with self.trace.span("wait", self.position, what):
            arrives = queue.get()
            time.sleep(max(0.0, arrives - time.perf_counter()))

    def _send(self, queue: SimpleQueue[float]) -> None:
        with self.trace.span("send", self.position, ""):
            queue.put(time.perf_counter() + TRANSFER_S)


def write_ranks(
    folder: Path,
    plan: Plan,
    simulation: Simulation,
    offsets: Sequence[float] = (),
    *,
    with_waits: bool = False,
) -> None:
    """The files that a run would leave whose ranks did exactly this, each on its own clock.

    Waits are in the gaps, and a short send behind each forward and backward.
    """
    places = PlaceTrace(folder, plan.limits)
    for number, place in enumerate(plan.places):
        places.ran(number, place)
    places.close()
    for stage in range(plan.limits.stages):
        offset = offsets[stage] if offsets else 0.0
        Trace(folder, stage, plan.limits.stages, offset_s=offset).close()
        actions = [action for action in simulation.actions if action.stage == stage]
        spans = [(a.kind, a.place, "x", a.start_s, a.end_s) for a in actions]
        for before, after in pairwise(actions) if with_waits else ():
            sent = before.end_s + min(1e-4, (after.start_s - before.end_s) / 2)
            spans.append(("send", after.place, "", before.end_s, sent))
            spans.append(("wait", after.place, "forward of stage 0", sent, after.start_s))
        with (folder / f"rank-{stage}.jsonl").open("a") as file:
            for kind, place, name, *times in sorted(spans, key=lambda span: span[-1]):
                start, end = (1000.0 + time - offset for time in times)
                line = {"kind": kind, "place": place, "name": name, "start": start, "end": end}
                file.write(f"{json.dumps(line)}\n")


def lines(path: Path) -> list[dict[str, Any]]:
    """Every line of a file, parsed."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rewrite(path: Path, change: Callable[[dict[str, Any]], Sequence[dict[str, Any]]]) -> None:
    """Put other lines in the place of each line."""
    changed = [new for line in lines(path) for new in change(line)]
    path.write_text("".join(f"{json.dumps(line, separators=(',', ':'))}\n" for line in changed))
