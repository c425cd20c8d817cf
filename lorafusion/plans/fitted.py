"""What was to be expected of a pipeline: its places, played with times fitted to the run itself.

On each stage a forward takes a + b x load, fitted to the run's own forwards by least squares, so
that all of them together take as long as they did; backwards likewise, and evals on their own. A
step takes the stage's mean step, and a message what the median one took that a stage waited for.
What a run does otherwise is what the schedule cannot know: uneven times, and what comes in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

from lorafusion.planner.place_times import PlaceTimes
from lorafusion.planner.plan import Place
from lorafusion.planner.simulate import Simulation, simulate
from lorafusion.plans.measured import BUSY, exclusive
from lorafusion.plans.recorded import Recording, Span

__all__ = ["fitted_times", "planned"]


def planned(recording: Recording) -> Simulation:
    """The same places, as they would run with times fitted to this run."""
    return simulate(fitted_times(recording), stages=len(recording.spans))


def fitted_times(recording: Recording) -> list[PlaceTimes]:
    """What each place costs on each stage, as said above."""
    plan = recording.plan
    lines = [_StageFit.of(recording, stage) for stage in range(len(recording.spans))]
    transfer = _transfer(recording.spans)
    found: list[PlaceTimes] = []
    for place in plan.places:
        if place.kind == "noop":
            found.append(PlaceTimes.idle(len(lines)))
            continue
        load, trains = place.load(plan.limits), place.kind == "train"
        steps = len(place.completes) if trains else 0
        found.append(
            PlaceTimes(
                forward=tuple((fit.forward if trains else fit.evals)(load) for fit in lines),
                backward=tuple(fit.backward(load) if trains else 0.0 for fit in lines),
                step=tuple(steps * fit.step_s for fit in lines),
                transfer_s=transfer,
                completes=steps > 0,
            )
        )
    return found


@dataclass(frozen=True, slots=True)
class _Line:
    """Seconds of a load."""

    fixed: float = 0.0
    slope: float = 0.0

    def __call__(self, load: float) -> float:
        return self.fixed + self.slope * load

    @classmethod
    def of(cls, points: Sequence[tuple[float, float]]) -> _Line:
        """Least squares of (load, seconds) without a part below 0; keeps the sum of the seconds."""
        if not points:
            return cls()
        load, seconds = fmean(x for x, _ in points), fmean(y for _, y in points)
        spread = sum((x - load) ** 2 for x, _ in points)
        slope = sum((x - load) * (y - seconds) for x, y in points) / spread if spread else 0.0
        if slope <= 0:
            return cls(fixed=seconds)
        if slope * load > seconds:
            return cls(slope=seconds / load)
        return cls(seconds - slope * load, slope)


@dataclass(frozen=True, slots=True)
class _StageFit:
    forward: _Line
    evals: _Line
    backward: _Line
    step_s: float

    @classmethod
    def of(cls, recording: Recording, stage: int) -> _StageFit:
        plan = recording.plan
        seconds: dict[tuple[str, int], float] = {}
        for span in exclusive(recording.spans[stage]):
            key = span.kind, span.place
            if span.kind in BUSY:
                seconds[key] = seconds.get(key, 0.0) + span.end - span.start

        def points(kind: str, of: str) -> list[tuple[float, float]]:
            return [
                (plan.places[place].load(plan.limits), took)
                for (what, place), took in seconds.items()
                if what == kind and plan.places[place].kind == of
            ]

        steps = [(took, _steps(plan.places[p])) for (k, p), took in seconds.items() if k == "step"]
        taken = sum(count for _, count in steps)
        return cls(
            forward=_Line.of(points("forward", "train")),
            evals=_Line.of(points("forward", "eval")),
            backward=_Line.of(points("backward", "train")),
            step_s=sum(took for took, _ in steps) / taken if taken else 0.0,
        )


def _steps(place: Place) -> int:
    return len(place.completes) if place.kind == "train" else 0


def _transfer(spans: Sequence[Sequence[Span]]) -> float:
    """Median seconds from the end of a forward to its arrival on a stage that waited for it."""
    found: list[float] = []
    for above, below in pairwise(spans):
        ends = {span.place: span.end for span in above if span.kind == "forward"}
        for span in below:
            ended = ends.get(span.place)
            is_forward = span.kind == "wait" and span.name.startswith("forward")
            if is_forward and ended is not None and span.start < ended <= span.end:
                found.append(span.end - ended)
    return median(found) if found else 0.0
