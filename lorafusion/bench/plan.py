"""What the planner reaches on cases: places beside bounds and other planners, bubble, seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lorafusion.bench.plan_case import CaseFile, Reached
from lorafusion.planner.baselines import Baseline, lorafusion_greedy, mlora, one_after_another
from lorafusion.planner.case import to_rows
from lorafusion.planner.plan import Limits, Plan
from lorafusion.planner.queue import JobQueue
from lorafusion.planner.search import plan_run
from lorafusion.planner.sweep import load_bubble
from lorafusion.planner.verify import find_violations

__all__ = ["BASELINES", "Outcome", "measure_case", "reached"]

BASELINES: Mapping[str, Callable[[Sequence[JobQueue], Limits], Baseline]] = {
    "lorafusion_greedy": lorafusion_greedy,
    "mlora": mlora,
    "one_after_another": one_after_another,
}
"""None of them pads to a kernel's blocks here, which makes them better than they are."""


def _no_others() -> Mapping[str, Reached]:
    return {}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One case, planned.

    Attributes:
        file: The case and its bounds.
        plan: Ours.
        ours: What it reaches.
        seconds: Of planning alone, the median of the rounds.
        violations: What the verifier says of the plan; nothing, or the planner is broken.
        others: Other planners' ways, by name; empty where not asked for.
    """

    file: CaseFile
    plan: Plan
    ours: Reached
    seconds: float
    violations: tuple[str, ...] = ()
    others: Mapping[str, Reached] = field(default_factory=_no_others)

    @property
    def holds(self) -> bool | None:
        """Whether the plan is as good as it is to be; None where no aim is known.

        At most the aim's places; no violation; and where LoRAFusion's figures are known, no more
        places than the better of its modes and no larger bubble.
        """
        if self.violations:
            return False
        if self.file.aim is None:
            return None
        theirs = self.file.reference.values()
        return (
            self.ours.places <= self.file.aim
            and all(self.ours.places <= mode.places for mode in theirs)
            and all(self.ours.bubble <= mode.bubble for mode in theirs)
        )

    def record(self) -> dict[str, Any]:
        """The object that ``--json`` prints: the plan, and what can be counted in it."""
        return {
            **self._counted(),
            "plan": to_rows(self.plan, self.file.case),
            **({"baselines": _plain(self.others)} if self.others else {}),
        }

    def figures(self) -> dict[str, Any]:
        """The same without the plan, but with what it is compared with."""
        file = self.file
        return {
            **self._counted(),
            "jobs": len(file.case.jobs),
            "stages": file.case.stages,
            "by_load": file.by_load,
            "by_chain": file.by_chain,
            "bound": file.bound,
            "tight": file.tight,
            "aim": file.aim,
            "holds": self.holds,
            "reference": _plain(file.reference),
            "baselines": _plain(self.others),
        }

    def _counted(self) -> dict[str, Any]:
        return {
            "name": self.file.case.name,
            "places": self.ours.places,
            "microbatches": self.ours.places - self.ours.noops,
            "noops": self.ours.noops,
            "seconds": self.seconds,
            "bubble": self.ours.bubble,
        }


def measure_case(file: CaseFile, *, rounds: int = 1, baselines: bool = False) -> Outcome:
    """Plan a case ``rounds`` times; all plans are equal.

    Args:
        file: The case.
        rounds: How often it is planned, for the seconds.
        baselines: Also what the others' ways of planning reach.

    Raises:
        PlanError: A sample is above the capacity.
    """
    queues, limits = file.case.queues(), file.case.limits()
    seconds: list[float] = []
    plan = None
    for _ in range(rounds):
        start = time.perf_counter()
        plan = plan_run(queues, limits)
        seconds.append(time.perf_counter() - start)
    assert plan is not None, "at least one round"
    others = BASELINES if baselines else {}
    return Outcome(
        file=file,
        plan=plan,
        ours=reached(plan),
        seconds=statistics.median(seconds),
        violations=find_violations(plan, queues),
        # A flush takes as long as the no-ops that keep the same distance.
        others={name: reached(make(queues, limits).unflushed()) for name, make in others.items()},
    )


def reached(plan: Plan) -> Reached:
    """What a plan comes to, with loads as the time."""
    loads = [place.load(plan.limits) for place in plan.places]
    noops = sum(place.kind == "noop" for place in plan.places)
    return Reached(len(loads), noops, load_bubble(loads, plan.limits.stages))


def _plain(reached: Mapping[str, Reached]) -> dict[str, Any]:
    return {name: asdict(one) for name, one in reached.items()}
