"""A pipeline whose stages sleep instead of computing: all of it is real but the work.

What is left between the measured bubble and the simulated one is the pipeline's own: messages,
revisions, the interpreter, and sleeps that last longer than asked for.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from lorafusion.adapters.bank import AdapterBank
from lorafusion.bench.pipeline_turn import Rank, TurnRecorder, run_turn
from lorafusion.bench.plan_mixes import DEMO, make_queues
from lorafusion.bench.plan_simulated import Stages, make_run
from lorafusion.module_names import ModuleNames
from lorafusion.planner.place_times import PlaceTimes, place_times
from lorafusion.planner.plan import Place, Plan
from lorafusion.planner.search import plan_run
from lorafusion.planner.simulate import simulate
from lorafusion.training.compute import Compute
from lorafusion.training.passes import OwnPasses
from lorafusion.training.piece import Piece, Work
from lorafusion.training.residents import Residents
from lorafusion.training.team import Team

BASE = "Llama-3.1-8B"
WIDTH = 4
"""Columns of the hidden state. A message is small: sleeping stages send what real ones do, less."""


@dataclass(frozen=True)
class SleepStudy:
    """The demo's mix on a base whose cost is predicted, slowed down.

    Attributes:
        stages: Processes.
        places: About how many there are in the plan.
        place_s: Seconds of forward and backward of a place on a stage, on average.
        rounds: Turns.
    """

    stages: int
    places: int = 80
    place_s: float = 0.12
    rounds: int = 3

    def case(self) -> SleepCase:
        """The plan, and how long each stage sleeps."""
        queues = make_queues(DEMO, stages=self.stages, places=self.places)
        run = make_run(queues, Stages(BASE, self.stages, DEMO.capacity_tokens))
        plan = plan_run(run.queues, run.measure.limits())
        predicted = place_times(plan, run.cost, run.ranks)
        spent = [sum(place.forward) + sum(place.backward) for place in predicted]
        busy = [seconds for seconds in spent if seconds]
        factor = self.place_s * self.stages * len(busy) / sum(busy)
        return SleepCase(self, plan, tuple(_slowed(place, factor) for place in predicted))


@dataclass(frozen=True)
class SleepCase:
    """A study with its plan and the time of each place on each stage."""

    study: SleepStudy
    plan: Plan
    times: Sequence[PlaceTimes]

    def run(self, team: Team, recorder: TurnRecorder) -> dict[str, Any] | None:
        """All rounds on one rank; rank 0 returns the figures."""
        names = ModuleNames(linears=(), everything=(), shapes=())
        residents = Residents(AdapterBank(torch.nn.Identity(), names), lambda _: None)
        rank = Rank(team, recorder, residents, WIDTH)
        compute = SleepCompute(dict(zip(self.plan.places, self.times, strict=True)), team)
        turns = [run_turn(rank, compute, self.plan) for _ in range(self.study.rounds)]
        if not team.first:
            return None
        return {
            **asdict(self.study),
            "mix": DEMO.name,
            "base": BASE,
            "noops": sum(place.kind == "noop" for place in self.plan.places),
            "places": len(self.plan.places),
            "predicted": self.predicted(),
            "turns": [turn.figures() for turn in turns if turn is not None],
        }

    def predicted(self) -> dict[str, float]:
        """What the simulator says of the same places and times."""
        found = simulate(self.times, stages=self.study.stages)
        return {
            "seconds": found.makespan_s,
            "bubble": found.bubble,
            "bubble_without_ramp": found.bubble_without_ramp,
        }


class SleepCompute(Compute):
    """Sleeps as long as planned, and gives tensors of the planned shapes."""

    def __init__(self, times: Mapping[Place, PlaceTimes], team: Team) -> None:
        """``times``: of each place; equal places take equally long."""
        self.failed = set()
        self.passes = OwnPasses()
        self._times = times
        self._team = team

    def forward(self, place: Place, hidden_TD: torch.Tensor | None) -> tuple[Work, torch.Tensor]:
        """Sleep; the losses are zeros."""
        time.sleep(self._times[place].forward[self._team.stage])
        samples = sum(len(segment.samples) for segment in place.segments)
        losses = torch.zeros(samples, dtype=torch.float64) if self._team.last else None
        piece = Piece(place, slice(0, place.tokens), (), losses=losses)
        return Work(place, hidden_TD, [piece]), torch.zeros(place.tokens, WIDTH)

    def backward(self, work: Work, gradient_TD: torch.Tensor | None) -> torch.Tensor | None:
        """Sleep."""
        time.sleep(self._times[work.place].backward[self._team.stage])
        return None if work.hidden_TD is None else torch.zeros_like(work.hidden_TD)


def _slowed(place: PlaceTimes, factor: float) -> PlaceTimes:
    """Forward and backward so many times as long; steps and messages take what they really take."""
    return replace(
        place,
        forward=tuple(seconds * factor for seconds in place.forward),
        backward=tuple(seconds * factor for seconds in place.backward),
        step=(0.0,) * len(place.step),
        transfer_s=0.0,
    )
