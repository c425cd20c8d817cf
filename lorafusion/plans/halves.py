"""A run's two halves, planned and measured: their figures, and what of them is drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lorafusion.planner.simulate import Simulation
from lorafusion.plans.excerpt import Budget, Excerpt, cut, until
from lorafusion.plans.fitted import planned
from lorafusion.plans.measured import Beside, Measured, measured
from lorafusion.plans.quantities import duration, percent
from lorafusion.plans.recorded import Recording
from lorafusion.plans.summary import PlanSummary, summarise

__all__ = ["MEASURED", "PLANNED", "Halves", "StageRow"]

PLANNED, MEASURED = "planned, with times fitted to this run", "measured"


@dataclass(frozen=True, slots=True)
class StageRow:
    """One stage in figures, in seconds.

    Attributes:
        forward_s: In forwards, evals among them.
        backward_s: In backwards.
        step_s: In optimizer steps.
        before_s: In waits for the stage before.
        after_s: In waits for the stage behind.
        plan_s: In waits for the plan.
        other_s: In sends and in no span, such as rank 0's planning.
        idle: Share of the run in which it did not compute.
        planned_idle: The same, as planned.
    """

    forward_s: float
    backward_s: float
    step_s: float
    before_s: float
    after_s: float
    plan_s: float
    other_s: float
    idle: float
    planned_idle: float


@dataclass(frozen=True, slots=True)
class Halves:
    """A run and what was to be expected of it.

    Attributes:
        recording: What the ranks recorded.
        planned: The same places as they would run by themselves.
        run: What was measured.
        summary: Of the run.
    """

    recording: Recording
    planned: Simulation
    run: Measured
    summary: PlanSummary

    @classmethod
    def of(cls, recording: Recording, title: str) -> Halves:
        """Both halves of a recording.

        Raises:
            OutputError: Nothing was computed.
        """
        run = measured(recording)
        summary = summarise(recording.plan, run.simulation, title=title)
        return cls(recording, planned(recording), run, summary)

    @property
    def longest(self) -> float:
        """Seconds of the longer half."""
        return max(self.planned.makespan_s, self.run.simulation.makespan_s)

    @property
    def read(self) -> str:
        """What of a long run was read; empty where it is all."""
        read = len(self.recording.plan.places)
        if read == self.recording.places:
            return ""
        return f"Everything here is of the first {read:,} of {self.recording.places:,} places."

    def excerpts(self, budget: Budget) -> tuple[Excerpt, Excerpt]:
        """What is drawn of the planned and of the measured half: both up to the same time."""
        plan = self.recording.plan
        first, second = (cut(plan, s, budget) for s in (self.planned, self.run.simulation))
        if first.whole and second.whole:
            return replace(first, end=self.longest), replace(second, end=self.longest)
        end = min(first.end, second.end)
        halves = [
            replace(half, end=end, lanes=tuple(until(lane, end) for lane in half.lanes))
            for half in (first, second)
        ]
        return halves[0], halves[1]

    def beside(self, stage: int, end: float) -> list[Beside]:
        """A stage's waits and sends that begin before ``end``."""
        return [b for b in self.run.beside if b.stage == stage and b.start_s < end]

    def figures(self) -> list[tuple[str, str, str]]:
        """Rows of (what, value, remark)."""
        run, plan, summary = self.run.simulation, self.planned, self.summary
        waits = sum(b.end_s - b.start_s for b in self.run.beside if b.kind == "wait")
        share = waits / (summary.stages * run.makespan_s)
        kinds = f"{summary.train:,} train, {summary.evals:,} eval" if summary.evals else ""
        return [
            ("measured", duration(run.makespan_s, "s"), "first forward to last action"),
            ("planned", duration(plan.makespan_s, "s"), "same places, times fitted to this run"),
            ("bubble", percent(run.bubble), f"planned {percent(plan.bubble)}"),
            (
                "bubble, no ramp",
                percent(run.bubble_without_ramp),
                f"planned {percent(plan.bubble_without_ramp)}",
            ),
            ("waits", percent(share), "of the time of all stages"),
            ("microbatches", f"{summary.microbatches:,}", kinds),
            ("no-ops", f"{summary.noops:,}", "places without a microbatch"),
            ("tokens", f"{summary.tokens:,}", f"{summary.steps:,} optimizer steps"),
        ]

    def rows(self) -> list[StageRow]:
        """Each stage in figures."""
        return [self._row(stage) for stage in range(self.summary.stages)]

    def _row(self, stage: int) -> StageRow:
        busy = dict.fromkeys(("forward", "backward", "step"), 0.0)
        for action in self.run.simulation.actions:
            if action.stage == stage:
                busy[action.kind] += action.end_s - action.start_s
        waits = dict.fromkeys(("forward", "backward", ""), 0.0)
        for wait in self.run.beside:
            if wait.stage == stage and wait.kind == "wait":
                what = wait.name.partition(" ")[0]
                waits[what if what in waits else ""] += wait.end_s - wait.start_s
        run, plan = self.run.simulation, self.planned
        return StageRow(
            *busy.values(),
            *waits.values(),
            other_s=max(0.0, run.makespan_s - sum(busy.values()) - sum(waits.values())),
            idle=1 - run.busy_s[stage] / run.makespan_s,
            planned_idle=1 - plan.busy_s[stage] / plan.makespan_s if plan.makespan_s else 0.0,
        )
