"""The figures of a plan and its simulation: what stands above a drawing and on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorafusion.planner.plan import Plan
from lorafusion.planner.simulate import Simulation
from lorafusion.plans.quantities import Unit, count, duration, percent, printable, size

__all__ = ["JobSummary", "PlanSummary", "summarise"]

# A terminal shows the first jobs; the page lists more.
LISTED = 40


@dataclass(frozen=True, slots=True)
class JobSummary:
    """One job's part of a plan.

    Attributes:
        name: The job.
        steps: Optimizer steps that the plan completes.
        evals: Evaluations that it completes.
        samples: Samples, of training and of evaluations.
        tokens: Their tokens.
        load: What they take of the capacity.
        first: Its first place, counted from 0.
        last: Its last place.
        alone: Whether it shares no microbatch because that would gain it nothing.
    """

    name: str
    steps: int
    evals: int
    samples: int
    tokens: int
    load: int
    first: int
    last: int
    alone: bool


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """A plan and its simulation in figures.

    Attributes:
        title: What was planned.
        unit: What ``makespan`` is in.
        stages: Pipeline stages S.
        replicas: Replicas D.
        capacity: The most load of a place.
        train: Places that train.
        evals: Places that evaluate.
        noops: Places without a microbatch.
        tokens: Tokens of all microbatches.
        fill: Mean load of the microbatches over the capacity; 0 where there are none.
        makespan: From the first action's start to the last one's end.
        bubble: Share of the makespan in which a stage is idle, as the simulation has it.
        bubble_without_ramp: The same without the filling and draining of the pipeline.
        peak_bytes: Most bytes held by each stage; empty where no cost model was given.
        jobs: In the order of their first places.
    """

    title: str
    unit: Unit
    stages: int
    replicas: int
    capacity: int
    train: int
    evals: int
    noops: int
    tokens: int
    fill: float
    makespan: float
    bubble: float
    bubble_without_ramp: float
    peak_bytes: tuple[float, ...]
    jobs: tuple[JobSummary, ...]

    @property
    def microbatches(self) -> int:
        """Places that hold one."""
        return self.train + self.evals

    @property
    def places(self) -> int:
        """All places."""
        return self.microbatches + self.noops

    @property
    def steps(self) -> int:
        """Optimizer steps of all jobs."""
        return sum(job.steps for job in self.jobs)

    @property
    def grid(self) -> str:
        """What it runs on, such as ``4 stages, 2 replicas``."""
        stages = count(self.stages, "stage")
        replicas = f", {count(self.replicas, 'replica')}" if self.replicas > 1 else ""
        return stages + replicas

    def figures(self) -> list[tuple[str, str, str]]:
        """Rows of (what, value, remark) for a table; a remark may be empty."""
        kinds = f"{self.train:,} train, {self.evals:,} eval" if self.evals else ""
        rows = [
            ("places", f"{self.places:,}", f"on {self.grid}"),
            ("microbatches", f"{self.microbatches:,}", kinds),
            ("no-ops", f"{self.noops:,}", "places without a microbatch"),
            ("makespan", duration(self.makespan, self.unit), _TIMES[self.unit]),
            ("bubble", percent(self.bubble), "idle share of the makespan, with the ramp"),
            ("bubble, no ramp", percent(self.bubble_without_ramp), "without filling and draining"),
            ("fill", percent(self.fill), f"mean load over the capacity of {self.capacity:,}"),
            ("tokens", f"{self.tokens:,}", count(self.steps, "optimizer step")),
        ]
        if any(self.peak_bytes):
            held = f"on the fullest stage; {size(min(self.peak_bytes))} on the emptiest"
            rows.append(("memory", size(max(self.peak_bytes)), held if self.stages > 1 else ""))
        return rows

    def lines(self) -> list[str]:
        """What a terminal shows: the figures, then a line a job."""
        rows = self.figures()
        left, right = (max(len(row[i]) for row in rows) for i in (0, 1))
        lines = [printable(self.title)]
        lines += [
            f"  {what:<{left}}  {value:>{right}}  {remark}".rstrip() for what, value, remark in rows
        ]
        return [*lines, "", *_job_lines(self.jobs)] if self.jobs else lines


_TIMES: dict[Unit, str] = {
    "s": "predicted by the cost model",
    "load": "in load units: forward = load, backward = 2 × load",
}


def summarise(
    plan: Plan, simulation: Simulation, *, unit: Unit = "s", title: str = "plan"
) -> PlanSummary:
    """Sum up a plan and the simulation of it.

    Args:
        plan: The plan.
        simulation: Of this plan.
        unit: What the simulation's times are in.
        title: What was planned, such as the name of the job file.
    """
    kinds = [place.kind for place in plan.places]
    loads = [place.load(plan.limits) for place in plan.places if place.kind != "noop"]
    return PlanSummary(
        title=title,
        unit=unit,
        stages=plan.limits.stages,
        replicas=plan.limits.replicas,
        capacity=plan.limits.capacity,
        train=kinds.count("train"),
        evals=kinds.count("eval"),
        noops=kinds.count("noop"),
        tokens=sum(place.tokens for place in plan.places),
        fill=sum(loads) / (len(loads) * plan.limits.capacity) if loads else 0.0,
        makespan=simulation.makespan_s,
        bubble=simulation.bubble,
        bubble_without_ramp=simulation.bubble_without_ramp,
        peak_bytes=tuple(simulation.peak_bytes),
        jobs=_jobs(plan),
    )


def _jobs(plan: Plan) -> tuple[JobSummary, ...]:
    """Each job's part, in the order of their first places."""
    names = job_names(plan)
    sums = {name: [0, 0, 0] for name in names}
    done: dict[str, dict[str, int]] = {name: {"train": 0, "eval": 0} for name in names}
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for index, place in enumerate(plan.places):
        for segment in place.segments:
            first.setdefault(segment.job, index)
            last[segment.job] = index
            added = (len(segment.samples), sum(segment.lengths), sum(segment.loads))
            sums[segment.job] = [a + b for a, b in zip(sums[segment.job], added, strict=True)]
            sums[segment.job][2] += plan.limits.segment_load
        for job, _ in place.completes:
            done[job][place.kind] += 1
    alone = set(plan.alone)
    return tuple(
        JobSummary(
            name=name,
            steps=done[name]["train"],
            evals=done[name]["eval"],
            samples=sums[name][0],
            tokens=sums[name][1],
            load=sums[name][2],
            first=first[name],
            last=last[name],
            alone=name in alone,
        )
        for name in names
    )


def job_names(plan: Plan) -> tuple[str, ...]:
    """The jobs in the order of their first places: a job's index here is its colour."""
    return tuple(dict.fromkeys(segment.job for place in plan.places for segment in place.segments))


def _job_lines(jobs: Sequence[JobSummary]) -> list[str]:
    rows = [("job", "steps", "samples", "tokens", "places", "")]
    rows += [
        (
            printable(job.name),
            f"{job.steps:,}",
            f"{job.samples:,}",
            f"{job.tokens:,}",
            f"{job.first:,} to {job.last:,}",
            "alone" if job.alone else "",
        )
        for job in jobs[:LISTED]
    ]
    name, *widths = (max(len(row[i]) for row in rows) for i in range(len(rows[0])))
    lines = [
        "  ".join(
            [f"{row[0]:<{name}}", *(f"{c:>{w}}" for c, w in zip(row[1:], widths, strict=True))]
        ).rstrip()
        for row in rows
    ]
    rest = len(jobs) - LISTED
    return [*lines, f"and {count(rest, 'more job')}"] if rest > 0 else lines
