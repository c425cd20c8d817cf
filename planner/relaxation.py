"""Whether a number of places is enough when samples can be divided at will, by CP-SAT.

A step keeps its first and its last place: at least its bins apart, and S·D places from the step
before. Between them its load flows freely, and what flows into a place is at most the capacity.
Every plan is such a flow, so where there is none, there is no plan of that many places.

For given first and last places this is a flow problem with integer ends, which has an integer
solution if it has one at all: so what flows may be integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from lorafusion.planner.links import Links

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

__all__ = ["Relaxation"]

LITERALS = 40_000
"""Of larger models none was settled: they are those of runs with room for many orders."""


class Relaxation:
    """The relaxation for one set of jobs."""

    def __init__(self, jobs: Sequence[Links], capacity: int, effort: float) -> None:
        self._capacity = capacity
        self._jobs = [job for job in jobs if job.links]
        self._left = effort

    def feasible(self, places: int) -> bool | None:
        """Whether a divisible plan of ``places`` places exists; None: not known.

        What was used of the effort by earlier calls is not there any more.
        """
        if any(job.length > places for job in self._jobs):
            return False
        if self._left <= 0 or self._literals(places) > LITERALS:
            return None
        from ortools.sat.python import cp_model

        model = _Model(self._capacity, places)
        for job in self._jobs:
            model.add_job(job)
        model.close()
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = 0
        solver.parameters.max_deterministic_time = self._left
        # Probing takes up to 20 times as long as the proof that follows it.
        solver.parameters.cp_model_probing_level = 0
        # All constraints in the linear relaxation: proofs take down to an eighth of the time.
        solver.parameters.linearization_level = 2
        status = solver.solve(model.model)
        self._left -= solver.response_proto.deterministic_time
        known = {cp_model.OPTIMAL: True, cp_model.FEASIBLE: True, cp_model.INFEASIBLE: False}
        return known.get(status)

    def _literals(self, places: int) -> int:
        return sum(2 * (places - job.length) * len(job.links) for job in self._jobs)


@dataclass(frozen=True)
class _Switch:
    """What is false before place ``first``, true from ``last`` on, and a literal between them."""

    first: int
    last: int
    literals: Sequence[cp_model.IntVar]

    def at(self, place: int) -> cp_model.IntVar | bool:
        if self.first <= place < self.last:
            return self.literals[place - self.first]
        return place >= self.last


class _Model:
    def __init__(self, capacity: int, places: int) -> None:
        from ortools.sat.python import cp_model

        self.model = cp_model.CpModel()
        self._capacity = capacity
        self._places = places
        self._flows: list[list[cp_model.LinearExprT]] = [[] for _ in range(places)]

    def close(self) -> None:
        """Limit what flows into each place."""
        for flows in self._flows:
            self.model.add(sum(flows) <= self._capacity)

    def add_job(self, job: Links) -> None:
        """Add the job's windows, and the load that it has done by the end of each place."""
        begun: list[_Switch] = []
        ended: list[_Switch] = []
        for link, start, end in zip(job.links, job.starts(), job.ends(self._places), strict=True):
            begun.append(self._switch(start, end - link.bins + 1))
            ended.append(self._switch(start + link.bins - 1, end))
            self._follows(ended[-1], begun[-1], link.bins - 1)
            if len(begun) > 1:
                self._follows(begun[-1], ended[-2], link.gap)
        self._flow(job, begun, ended)

    def _switch(self, first: int, last: int) -> _Switch:
        literals = [self.model.new_bool_var("") for _ in range(first, last)]
        for earlier, later in pairwise(literals):
            self.model.add_implication(earlier, later)
        return _Switch(first, last, literals)

    def _follows(self, later: _Switch, earlier: _Switch, distance: int) -> None:
        """``later`` at a place means that ``earlier`` was ``distance`` places before it."""
        for place in range(later.first, later.last):
            before = earlier.at(place - distance)
            if not isinstance(before, bool):
                self.model.add_implication(later.at(place), before)

    def _flow(self, job: Links, begun: Sequence[_Switch], ended: Sequence[_Switch]) -> None:
        """The load done by the end of each place, between what has ended and what has begun."""
        loads = [link.load for link in job.links]
        before = [0, *accumulate(loads)]
        done: cp_model.LinearExprT = 0
        for place in range(begun[0].first, ended[-1].last + 1):
            past = sum(switch.last < place for switch in ended)
            links = [t for t in range(past, len(loads)) if begun[t].first <= place]
            now = self.model.new_int_var(before[past], before[past + len(links)], "")
            self.model.add(now <= before[past] + sum(loads[t] * begun[t].at(place) for t in links))
            self.model.add(now >= before[past] + sum(loads[t] * ended[t].at(place) for t in links))
            self.model.add(now >= done)
            # Implied, but not by the linear relaxation: a link flows only while it is open.
            is_open = ((t, begun[t].at(place) - ended[t].at(place - 1)) for t in links)
            self.model.add(now - done <= sum(job.links[t].most * opened for t, opened in is_open))
            self._flows[place].append(now - done)
            done = now
