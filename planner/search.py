"""Plan a whole run: list schedules in several ways, the best cut and built on anew, evened out.

Filling a place takes a fraction of a millisecond, so many ways are tried. A *round* builds a plan
from a cut to its end: a stretch of places is filled in several ways, with other priorities, places
filled less or jobs pressed sooner; the one with the best outlook goes on. The first round begins at
the first place, each later one at a random place of the best plan so far. What counts of a finished
plan is, in this order, its places, the samples behind the lower bound, and its pace.

The work is limited by the number of samples placed, never by a clock: the same queues, limits and
effort give the same plan on any machine. For the same reason the variations use nothing of the
random generator but ``random()``, and no function whose last bit a C library decides.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lorafusion.planner.balance import balance, draft_loads, pace
from lorafusion.planner.chain import Chain, make_chains
from lorafusion.planner.draft import DraftPlace, to_plan
from lorafusion.planner.exact import improve, worth_it
from lorafusion.planner.plan import Limits, Plan
from lorafusion.planner.queue import JobQueue
from lorafusion.planner.schedule import BEGUN_FIRST, Scheduler, Tuning

__all__ = ["EFFORT", "plan_run"]

EFFORT = 30_000
"""Samples placed in all; about 0.4 s. What is left when it is spent is built in one way."""

SEED = 5
"""Of the variations. Of six seeds this one alone takes small_batches to 162 places; the others stay
at 164 (161 are needed). On the other reference cases they differ by a place at most."""

WAYS = 5
"""Ways in which each stretch is filled."""

BALANCED = 3
"""Of the best plans, how many are evened out before one is chosen."""

EVEN = 1.005
"""Pace over that of equal places at which a plan of the fewest places is not searched any more."""

SWEEPS = 24
"""Most sweeps of balancing; after 16 small_batches (163 places, four jobs) gained nothing more."""


def plan_run(
    queues: Sequence[JobQueue],
    limits: Limits,
    *,
    effort: int = EFFORT,
    seed: int = SEED,
    exact: float = 0.0,
) -> Plan:
    """Plan everything that ``queues`` hold, for the earliest end of them all.

    Args:
        queues: Upcoming work, one queue per job.
        limits: What the plan is made for.
        effort: Samples to place over all ways; one plan is made in any case.
        seed: Of the variations.
        exact: Deterministic seconds of CP-SAT, see :mod:`lorafusion.planner.exact`; it is asked
            only where it is likely to gain something.

    Raises:
        PlanError: As :func:`lorafusion.planner.chain.check_queues`.
    """
    chains = make_chains(queues, limits)
    search = _Search(chains, limits, seed)
    search.run(effort)
    draft = search.result()
    if exact > 0 and worth_it(draft, chains, limits):
        draft = improve(draft, chains, limits, budget=exact)
    return to_plan(draft, chains, limits)


@dataclass(frozen=True, slots=True)
class _Found:
    cost: tuple[int, int, int]
    draft: list[DraftPlace]


class _Search:
    def __init__(self, chains: Sequence[Chain], limits: Limits, seed: int) -> None:
        self._chains = chains
        self._limits = limits
        self._random = random.Random(seed)
        self._plain = Tuning.plain(chains, limits)
        self._load = sum(entry.load for chain in chains for entry in chain.entries)
        longest = max((int(chain.queue.ready_at + chain.length) for chain in chains), default=0)
        self._bound = max(-(-self._load // limits.capacity), longest)
        self._stretch = 2 * limits.distance + 4
        self._best: list[_Found] = []  # at most BALANCED, the best first

    def run(self, effort: int) -> None:
        """Rounds until ``effort`` samples have been placed."""
        effort -= self._round([], 0)  # one plain pass: no search is worse
        cut = 0.0
        while effort > 0 and not self._nothing_to_gain():
            best = self._best[0].draft
            # A start that is almost at the end places little: it must not go on for ever.
            effort -= max(1, self._round(best[: int(cut * len(best))], effort))
            cut = self._random.random()

    def _nothing_to_gain(self) -> bool:
        """Whether the best plan has the fewest places, and they are as even as can be."""
        places, _, found = self._best[0].cost
        even = self._load * (1 + (self._limits.distance - 1) / max(places, 1))
        return places <= self._bound and found <= EVEN * even

    def _round(self, before: Sequence[DraftPlace], effort: int) -> int:
        """Build behind ``before`` to the end, and keep what is good; returns the samples placed."""
        plan, placed = Scheduler(self._chains, self._limits, before), 0
        while not plan.done and placed < effort:
            ways = list(self._ways(plan))
            placed += sum(way.placed for way in ways)
            plan = min(ways, key=lambda way: way.outlook)
        searched = plan.placed
        plan.run(self._plain)  # nothing, if it is done
        self._keep(_Found(self._cost(plan.places), plan.places))
        return placed + plan.placed - searched

    def _ways(self, plan: Scheduler) -> Iterator[Scheduler]:
        """The plan with its next stretch filled in several ways."""
        until = len(plan.places) + self._stretch
        for number in range(WAYS):
            way = plan.copy()
            way.run(self._variation() if number else self._plain, until)
            yield way

    def _keep(self, found: _Found) -> None:
        if any(found.cost == other.cost for other in self._best):
            return
        self._best = sorted([*self._best, found], key=lambda kept: kept.cost)[:BALANCED]

    def _cost(self, draft: list[DraftPlace]) -> tuple[int, int, int]:
        late = sum(len(taken) for place in draft[self._bound :] for taken in place.taken.values())
        loads = draft_loads(draft, self._chains, self._limits)
        return len(draft), late, pace(loads, self._limits.distance)

    def _variation(self) -> Tuning:
        draw = self._random.random
        scale = (0.6, 2.4, 4.8)[int(3 * draw())]
        return Tuning(
            offsets=tuple(scale * (draw() + draw() + draw() - 1.5) for _ in self._chains),
            target=1.0 if draw() < 0.5 else 0.75 + 0.25 * draw(),
            share=1.0 if draw() < 0.6 else draw(),
            margin=(-3, 0, 3, 6)[int(4 * draw())],
            stick=(0.0, 2.0, 6.0, BEGUN_FIRST)[int(4 * draw())],
            goal=self._bound if draw() < 0.5 else 0,
        )

    def result(self) -> list[DraftPlace]:
        """The best, evened out."""
        least = len(self._best[0].draft)
        evened = [
            balance(found.draft, self._chains, self._limits, sweeps=SWEEPS)
            for found in self._best
            if len(found.draft) == least
        ]
        return min(evened, key=lambda draft: self._cost(draft)[2])
