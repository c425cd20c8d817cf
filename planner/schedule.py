"""List scheduling: at each place, fill the microbatch from all jobs whose order allows it.

The most urgent job comes first. With ``policy="makespan"`` that is the one with the longest chain
left, so that the run as a whole ends soonest; with ``"fair"`` it is the one that was served least
for its weight, so that each gets its share at any time (:mod:`lorafusion.planner.shares`). A job
whose chain is as long as what is left of the run is *pressed*: it takes at least what keeps its
step within its bins, even if the place then stays less full. Evals that are due go before training,
because they hold up their job's next step, and share places with each other.

Nothing starves: a job that waits keeps its chain while the others' shrink (or what it was served
while theirs grows), so it comes first sooner or later.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Literal

from lorafusion.errors import PlanError
from lorafusion.planner.bins import count_bins
from lorafusion.planner.chain import Chain, make_chains
from lorafusion.planner.draft import Draft, DraftPlace, to_plan
from lorafusion.planner.fill import Room, fill
from lorafusion.planner.line import Line
from lorafusion.planner.plan import Limits, PlaceKind, Plan
from lorafusion.planner.queue import JobQueue
from lorafusion.planner.shares import Shares

__all__ = ["Policy", "Scheduler", "Tuning", "plan_window"]

EXACT_WORK = 1_000
"""Limit of the bins that a pressed job's rest is counted in, at each of its places."""

BEGUN_FIRST = 100.0
"""Places added to the chain of a job whose step has begun, so that all but much longer chains wait
for it to end. On sixteen stages (Llama-3.1-70B, four jobs) one pass took 818 places for 811 places'
worth of load, and 899 without: jobs that end their steps together all wait together."""

Policy = Literal["makespan", "fair"]


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a search varies from one build to the next.

    Attributes:
        policy: Which job comes first.
        offsets: Places added to the chain of each job when they are compared.
        target: How much of a place the others fill, of 1; see ``Room`` in fill.py.
        margin: Places of slack at which a job is pressed.
        goal: Places of the whole plan; a job whose chain would end behind it is pressed.
        share: Of what a pressed job may take between the least and a full place, how much it takes
            at most. Less of it lets other jobs end their steps sooner.
        stick: Places added to the chain of a job whose step has begun. With it, jobs end their
            steps at different times: there is always one with many samples to choose from.
    """

    policy: Policy = "makespan"
    offsets: Sequence[float] = ()
    target: float = 1.0
    margin: float = 0.0
    goal: int = 0
    share: float = 1.0
    stick: float = 0.0

    @classmethod
    def plain(cls, chains: Sequence[Chain], limits: Limits, policy: Policy = "makespan") -> Tuning:
        """What is best in one pass.

        Where the longest chain takes more places than all load, nothing may hold it up; else steps
        that have begun go first.
        """
        load = sum(chain.queue.remaining_load for chain in chains) / limits.capacity
        longest = max((chain.length for chain in chains), default=0)
        return cls(policy=policy, stick=0.0 if longest > load else BEGUN_FIRST)

    def urgency(self, line: Line, shares: Shares) -> tuple[float, int]:
        """Key by which jobs are sorted, the most urgent first."""
        if self.policy == "fair":
            return shares.served[line.chain.queue.name], line.number
        offset = self.offsets[line.number] if self.offsets else 0.0
        return -(line.length + offset + (self.stick if line.begun else 0.0)), line.number


def plan_window(
    queues: Sequence[JobQueue],
    limits: Limits,
    *,
    max_places: int,
    policy: Policy = "makespan",
) -> Plan:
    """Plan the next window in one pass. Equal queues give equal plans.

    A window ends when the queues are used up or after ``max_places``, which may cut a step in two;
    :func:`lorafusion.planner.queue.advance` gives the queues that the next call goes on from.
    No-op places stand only where every job waits for its last step to come back.

    Raises:
        PlanError: A setting below 1, two queues of one name, or a sample above the capacity.
    """
    if max_places < 1:
        raise PlanError(f"max_places is {max_places}; it must be an integer of at least 1.")
    chains = make_chains(queues, limits)
    scheduler = Scheduler(chains, limits)
    scheduler.run(Tuning.plain(chains, limits, policy), max_places)
    return to_plan(scheduler.places, chains, limits)


class Scheduler:
    """Fills places one after another, from the beginning or behind places that are there already.

    Attributes:
        places: The places so far.
        placed: Samples that it has placed itself, not counting those of what it was copied from.
    """

    def __init__(self, chains: Sequence[Chain], limits: Limits, before: Draft = ()) -> None:
        """``before``: places that stand; equal inputs give equal places behind them."""
        self._limits = limits
        self._room = limits.capacity - limits.segment_load
        lines = [Line(number, chain, limits) for number, chain in enumerate(chains)]
        for index, place in enumerate(before):
            for job, positions in place.taken.items():
                lines[job].take_positions(positions, index)
        self.places: list[DraftPlace] = list(before)
        self.placed = 0
        self._lines = [line for line in lines if not line.done]
        self._left = sum(line.left for line in lines)
        queues = [line.chain.queue for line in self._lines]
        self._shares = Shares(((q.name, q.weight, q.served) for q in queues), limits)

    def copy(self) -> Scheduler:
        """One that goes its own way from here."""
        other = copy(self)
        other.places = list(self.places)
        other.placed = 0
        other._lines = [line.copy() for line in self._lines]
        other._shares = self._shares.copy()
        return other

    @property
    def done(self) -> bool:
        """Whether everything is placed."""
        return not self._lines

    @property
    def outlook(self) -> tuple[float, float]:
        """How well it stands, the lower the better.

        First the least places that the whole can take from here on, by load and by the longest
        chain; then the sum of squares of where the chains would end, because it is not the longest
        alone that can come to be late.
        """
        now = len(self.places)
        ends = [max(line.ready, now) + line.length for line in self._lines]
        by_load = now + self._left / self._limits.capacity
        return max([by_load, *ends]), sum(end * end for end in ends)

    def run(self, tuning: Tuning, max_places: int | None = None) -> None:
        """Fill places until nothing is left or there are ``max_places``."""
        while self._lines and (max_places is None or len(self.places) < max_places):
            self.places.append(self._place(tuning, len(self.places)))

    def _place(self, tuning: Tuning, index: int) -> DraftPlace:
        ready = [line for line in self._lines if line.ready <= index]
        if not ready:
            return DraftPlace("noop", {})
        kind: PlaceKind = "eval" if any(line.kind == "eval" for line in ready) else "train"
        lines = sorted(
            (line for line in ready if line.kind == kind),
            key=lambda line: tuning.urgency(line, self._shares),
        )
        first = lines[0]
        sharing = [] if first.chain.alone else [line for line in lines[1:] if not line.chain.alone]
        lines = [first, *sharing]
        chosen = fill([line.loads for line in lines], self._offer(first, index, tuning))
        parts = [(line, part) for line, part in zip(lines, chosen, strict=False) if part]
        if kind == "train" and tuning.policy == "fair":
            self._charge(parts)
        taken = {line.number: self._take(line, part, index) for line, part in parts}
        return DraftPlace(kind, taken)

    def _charge(self, parts: Sequence[tuple[Line, Sequence[int]]]) -> None:
        loads = {
            line.chain.queue.name: sum(line.loads[index] for index in part) for line, part in parts
        }
        self._shares.charge(loads)

    def _take(self, line: Line, part: Sequence[int], index: int) -> tuple[int, ...]:
        left = line.left
        positions = line.take(part, index)
        self._left -= left - line.left
        self.placed += len(part)
        if line.done:
            self._lines.remove(line)
            self._shares.leave(line.chain.queue.name)
        return positions

    def _offer(self, first: Line, index: int, tuning: Tuning) -> Room:
        """The place's room; a pressed job takes what keeps its step within its bins."""
        capacity, segment = self._limits.capacity, self._limits.segment_load
        target = int(capacity * tuning.target)
        left = max(self._left / capacity, tuning.goal - index)
        if first.kind == "eval" or first.length + tuning.margin < left:
            return Room(capacity, target, segment)
        _, bins = count_bins(first.loads, self._room, work=EXACT_WORK)
        least = max(1, first.load - (bins - 1) * self._room)
        most = int(least + tuning.share * (self._room - least)) if bins > 1 else None
        return Room(capacity, target, segment, least, most)
