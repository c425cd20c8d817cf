"""A given plan, played by all ranks of a team: one turn of a benchmark of the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch

from lorafusion.models.stage import Stage
from lorafusion.planner.plan import Place, Plan
from lorafusion.training.compute import Compute
from lorafusion.training.executor import Executor
from lorafusion.training.follow import follow_places
from lorafusion.training.judge import Report
from lorafusion.training.memory_kinds import MemoryKinds
from lorafusion.training.residents import Residents
from lorafusion.training.revision import Revision, Track
from lorafusion.training.stage_times import StageTimes
from lorafusion.training.team import SpanKind, Team
from lorafusion.training.trace import Trace
from lorafusion.training.windows import WINDOW


class TurnRecorder:
    """Begins anew with each turn. See :class:`lorafusion.training.team.Recorder`."""

    def __init__(self) -> None:
        self._trace = Trace.silent()

    def renew(self) -> None:
        """What was recorded so far does not count any more."""
        self._trace = Trace.silent()

    def span(self, kind: SpanKind, place: int, name: str) -> AbstractContextManager[None]:
        """Covers the time that ``kind`` takes at a place of the turn."""
        return self._trace.span(kind, place, name)

    def stepped(self, place: int, job: str, step: int, samples: Sequence[int]) -> None:
        """Of no interest here."""

    def look_at(self, stage: Stage, memory: Callable[[], MemoryKinds]) -> None:
        """Of no interest here."""

    def summary(self) -> StageTimes:
        """Of this turn."""
        return self._trace.summary()

    def close(self) -> None:
        """There is no file."""

    @property
    def problem(self) -> str | None:
        """None: nothing is written."""
        return None


@dataclass(frozen=True)
class Rank:
    """One rank of the benchmark.

    Attributes:
        team: All of them.
        recorder: The team's.
        residents: The jobs on this stage; none where it only sleeps.
        width: Columns of the hidden state.
    """

    team: Team
    recorder: TurnRecorder
    residents: Residents
    width: int


@dataclass(frozen=True)
class Turn:
    """What a turn gave, on rank 0.

    Attributes:
        reports: Of every place that holds something, in order.
        stages: What each did with its time.
    """

    reports: Sequence[Report]
    stages: Sequence[StageTimes]

    @property
    def seconds(self) -> float:
        """From the first forward to the end of the last backward."""
        return self.stages[0].wall_s

    def figures(self) -> dict[str, Any]:
        """Seconds, and shares of idle time as :mod:`lorafusion.planner.simulate` defines them."""
        busy = sum(stage.busy_s for stage in self.stages)
        full = sum(stage.full_s for stage in self.stages)
        full_busy = sum(stage.full_busy_s for stage in self.stages)
        return {
            "seconds": self.seconds,
            "bubble": 1 - busy / (len(self.stages) * self.seconds),
            "bubble_without_ramp": 1 - full_busy / full if full else 0.0,
            "forward_s": [stage.forward_s for stage in self.stages],
            "backward_s": [stage.backward_s for stage in self.stages],
            "step_s": [stage.step_s for stage in self.stages],
        }


def run_turn(rank: Rank, compute: Compute, plan: Plan) -> Turn | None:
    """Play a plan from its first place to its end; every rank calls it. None but on rank 0."""
    team = rank.team
    executor = Executor(compute, rank.residents, team, rank.width, torch.float32)
    rank.recorder.renew()
    if not team.first:
        team.post.report({"kind": "ready"})
        follow_places(executor, rank.residents, team)
        team.post.report({"kind": "times", "times": rank.recorder.summary().to_dict()})
        _, message = team.post.wait()  # so that nobody is ready for the next turn before that
        assert message["kind"] == "over", f"rank 0 sent {message['kind']!r}"
        return None
    _gather(team, "ready")
    reports = _lead(executor, team, plan)
    own = rank.recorder.summary()
    others = [StageTimes.from_dict(message["times"]) for message in _gather(team, "times")]
    team.post.publish({"kind": "over"})
    return Turn(reports, [own, *others])


def _lead(executor: Executor, team: Team, plan: Plan) -> list[Report]:
    """As the training loop does: each window is published before the last place of the one before.

    The last revision holds no-ops, which bring the verdicts on the last places to all stages.
    """
    track, reports = Track(), list[Report]()
    windows = [plan.places[at : at + WINDOW] for at in range(0, len(plan.places), WINDOW)]
    windows.append((Place("noop"),) * team.stages)
    while True:
        if windows and executor.position >= track.known - 1:
            piece = replace(plan, places=windows.pop(0))
            revision = Revision(track.known, piece, last=not windows)
            team.post.publish(revision.message())
            track.add(revision)
        turn = track.take(executor.position, _never)
        if turn is None:
            break
        executor.forward(turn, lambda: None)
        if executor.full:
            reports += executor.backward()
    while not executor.empty:
        reports += executor.backward()
    return [report for report in reports if report.place.segments]


def _gather(team: Team, kind: str) -> list[dict[str, Any]]:
    """One message of a kind from each of the other ranks, in their order."""
    found: dict[int, dict[str, Any]] = {}
    while len(found) < team.others:
        rank, message = team.post.wait()
        assert message["kind"] == kind, f"rank {rank} sent {message['kind']!r}, not {kind!r}"
        found[rank] = dict(message)
    return [found[rank] for rank in sorted(found)]


def _never() -> Revision:
    raise AssertionError("rank 0 makes the plan, and has none for this place")
