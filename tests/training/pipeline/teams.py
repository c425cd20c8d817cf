"""Teams of ranks that go through courses, and how what they found is compared."""

from __future__ import annotations

import json
import math
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file

from tests.training.pipeline.courses import Course
from tests.training.runs import same_bits

ROOT = Path(__file__).parents[3]
PROGRAM = Path(__file__).with_name("program.py")
# In float64, relative.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Asked:
    """A team: what its ranks go through, and what is wrong on the rank with number ``stage``."""

    stages: int
    courses: Sequence[Course]
    fault: str = ""
    stage: int = 0
    replicas: int = 1


@dataclass(frozen=True)
class Answer:
    """What became of it. Codes: of the ranks, 0 for all is well."""

    asked: Asked
    codes: Sequence[int | None]
    folder: Path

    def of(self, course: Course) -> list[Found]:
        """What each stage found in a course."""
        return [
            Found.read(self.folder / f"{course.settings.number}-{rank}")
            for rank in range(self.asked.stages * self.asked.replicas)
        ]

    def errors(self) -> str:
        """What the ranks printed."""
        logs = sorted(self.folder.glob("err-*"))
        return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in logs)


@dataclass(frozen=True)
class Found:
    """Of one stage: reports are stage 0's; states by job and name of the tensor."""

    reports: Sequence[Mapping[str, Sequence[float]]]
    stepped: Sequence[tuple[int, str, int, tuple[int, ...]]]
    gave_up: Sequence[str]
    steps: Mapping[str, int]
    states: Mapping[str, torch.Tensor]

    @classmethod
    def read(cls, path: Path) -> Found:
        found = json.loads(path.with_suffix(".json").read_text())
        stepped = [(place, job, step, tuple(s)) for place, job, step, s in found.pop("stepped")]
        return cls(**found, stepped=stepped, states=load_file(path.with_suffix(".safetensors")))


class Teams:
    """The process that forks them. To be used in a ``with`` block."""

    def __init__(self, folder: Path, base: Path) -> None:
        """``folder``: for what the ranks find."""
        self._folder = folder
        self._base = base
        self._numbers = count()

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_error: object) -> None:
        try:
            self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def run(self, asked: Sequence[Asked], *, timeout_s: float) -> list[Answer]:
        """All teams at a time. Ranks that hang are killed, and have no code."""
        teams: list[dict[str, Any]] = []
        for team in asked:
            output = self._folder / f"team-{next(self._numbers)}"
            output.mkdir()
            courses = output / "courses.json"
            courses.write_text(json.dumps([asdict(course) for course in team.courses]))
            paths = {"courses": str(courses), "base": str(self._base), "output": str(output)}
            settings = {
                "stages": team.stages,
                "replicas": team.replicas,
                "fault": team.fault,
                "stage": team.stage,
            }
            teams.append({**paths, **settings, "port": _free_port()})
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"teams": teams, "timeout_s": timeout_s}) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_s + 60)
        assert ready, "the process that forks the ranks does not answer"
        codes = json.loads(self._process.stdout.readline())
        return [
            Answer(team, of_team, Path(entry["output"]))
            for team, of_team, entry in zip(asked, codes, teams, strict=True)
        ]


def differences(course: Course, alone: Sequence[Found], answer: Answer) -> list[str]:
    """How a course on several ranks differs from the same on one; each rank by itself too."""
    found, replicas = answer.of(course), answer.asked.replicas
    return [
        *_of_results(course, alone[0], found[0]),
        *_of_steps(course, [*alone, *found], replicas),
        *_of_states(course, alone[0], found, replicas),
    ]


def _of_results(course: Course, alone: Found, found: Found) -> Iterator[str]:
    """Losses of every sample, gradient norms and verdicts, where they count."""
    close = _same if course.settings.deterministic else _close
    if not len(alone.reports) == len(found.reports) == len(course.places):
        yield f"{len(found.reports)} of {len(course.places)} places were reported"
    for at, place in enumerate(course.places[: len(found.reports)]):
        expected, got = alone.reports[at], found.reports[at]
        if len(expected["losses"]) != len(got["losses"]):
            yield f"place {at}: {len(got['losses'])} losses"
        start = 0
        for segment in place.segments:
            end = start + len(segment.samples)
            if at <= course.counts[segment.job]:
                here = [_close(a, b) for a, b in _pairs(expected, got, "losses", start, end)]
                if not all(here):
                    yield f"place {at}: losses of {segment.job} #{segment.step}"
            start = end
        if place.kind != "train":
            continue
        for number, (job, step) in enumerate(place.completes):
            for name in ("squares", "verdicts"):
                [(a, b)] = _pairs(expected, got, name, number, number + 1)
                if at <= course.counts[job] and not close(a, b):
                    yield f"place {at}: {name} of {job} #{step}: {b}, alone {a}"


def _of_steps(course: Course, stages: Sequence[Found], replicas: int) -> Iterator[str]:
    """Samples whose gradients went into each step, on each rank, against the plan."""
    for number, stage in enumerate(stages):  # the first is the one process
        # There a job goes on until its places end.
        mine = [entry for entry in stage.stepped if entry[0] <= course.counts[entry[1]]]
        replica = (number - 1) // ((len(stages) - 1) // replicas)
        expected = list(course.steps() if number == 0 else course.steps(replica, replicas))
        if (mine if number == 0 else list(stage.stepped)) != expected:
            yield f"rank {number - 1}: steps {stage.stepped}, by the plan {expected}"
        if stage.gave_up:
            yield f"stage {number - 1}: gave up {stage.gave_up}"
        if number and stage.steps != course.final:
            yield f"stage {number - 1}: ended at {stage.steps} instead of {course.final}"


def _of_states(
    course: Course, alone: Found, found: Sequence[Found], replicas: int
) -> Iterator[str]:
    """Parameters and moments: each on one stage of every replica, and the same."""
    names = [name for stage in found[: len(found) // replicas] for name in stage.states]
    if sorted(names) != sorted(alone.states):
        yield f"{len(names)} tensors instead of {len(alone.states)}"
    for name, got in [entry for stage in found for entry in stage.states.items()]:
        expected = alone.states.get(name)
        if expected is None:
            continue
        if course.settings.deterministic:
            same = same_bits(got, expected)
        else:
            same = bool((got - expected).norm() <= TOLERANCE * expected.norm())
        if not same:
            yield f"{name} differs by {float((got - expected).norm()):.3g}"


def _pairs(
    expected: Mapping[str, Sequence[float]],
    got: Mapping[str, Sequence[float]],
    name: str,
    start: int,
    end: int,
) -> list[tuple[float, float]]:
    return list(zip(expected[name][start:end], got[name][start:end], strict=True))


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def _close(a: float, b: float) -> bool:
    return _same(a, b) or math.isclose(a, b, rel_tol=TOLERANCE)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]
