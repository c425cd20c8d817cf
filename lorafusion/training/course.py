"""Which place comes next on rank 0, and what the other ranks are told of it.

Rank 0 publishes the plan as revisions, see :mod:`lorafusion.training.revision`: the next window one
turn before it begins, and an earlier one whenever a job leaves or the run is to stop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lorafusion.errors import PlanError
from lorafusion.planner.plan import Limits, Plan
from lorafusion.training.job import TrainingJob
from lorafusion.training.residents import Residents
from lorafusion.training.revision import Leave, Revision, Track
from lorafusion.training.team import Team
from lorafusion.training.turn import Turn, idle_places
from lorafusion.training.windows import Windows
from lorafusion.training.zipped import ZippedWindows


class Course:
    """The places of a run, in order."""

    def __init__(
        self,
        team: Team,
        residents: Residents,
        windows: Windows | ZippedWindows,
        limits: Limits,
        should_stop: Callable[[], str | None],
    ) -> None:
        """``should_stop`` is asked between places; a reason means that nothing more is planned."""
        self._team = team
        self._residents = residents
        self._windows = windows
        self._limits = limits
        self._should_stop = should_stop
        self._track = Track(team.replicas)
        self._leaves: list[Leave] = []
        self._changed = False
        self._idle = False
        self.error: PlanError | None = None
        """Why no plan can be made any more."""

    @property
    def stop_reason(self) -> str | None:
        """Why nothing more is planned, or None."""
        return str(self.error) if self.error is not None else self._should_stop()

    def let_go(self, leave: Leave) -> None:
        """The other ranks hear of it with the next revision."""
        self._leaves.append(leave)

    def leave(self, job: TrainingJob, *, save: bool) -> None:
        """Plan the job no more; ``save``: a checkpoint of its last step is wanted."""
        leave = Leave(job.name, job.step, save)
        self._residents.stop_at(leave)
        self.let_go(leave)
        # Its next step may be in flight: the other ranks have to hear of it before they do that.
        self._changed |= not job.finished

    def join(self, job: TrainingJob) -> None:
        """Plan a job that is on all stages."""
        self._windows.add(job)
        self._idle = False
        self._changed = True

    @property
    def capacity(self) -> int:
        """Of the places that are planned next."""
        return self._limits.capacity

    def lower(self, capacity: int) -> None:
        """Plan with less, and remake the plan that is there."""
        self._limits = replace(self._limits, capacity=capacity)
        self._windows.lower(capacity)
        self._changed = True

    def look_ahead(self, place: int) -> None:
        """See to it that all ranks know what comes behind the turn at ``place``, which is next."""
        known, behind = self._track.known, place + self._team.replicas
        if self._idle:
            if self._changed and place < known:  # nothing is planned any more
                self._changed = False
                self._publish(Revision(behind, None, self._take_leaves()))
        elif self.stop_reason or self._changed:
            # The other ranks may have posted the receive of the place that is sent next.
            start = min(known, behind if self._team.others else place)
            self._windows.cut(start)
            self._publish_next(start)
        elif behind >= known:
            self._publish_next(known)

    def over(self, place: int) -> bool:
        """Whether ``place`` is behind the last one."""
        return place == self._track.known

    def take(self, place: int) -> Turn | None:
        """The turn at ``place``, to be run now; None at the end of the run."""
        return self._track.take(place, _never)

    def let_leave(self, place: int) -> None:
        """Jobs that leave before ``place`` leave this stage."""
        for leave in self._track.leaves(place):
            self._residents.leave(leave)

    def rest(self, place: int) -> None:
        """Nothing is to be run at ``place`` yet: who is to leave leaves all the same."""
        if self._leaves:
            self._publish(Revision(place, None, self._take_leaves()))
        self.let_leave(place)

    def end(self) -> None:
        """All places were run and heard of: let the other ranks go."""
        self._publish(Revision(self._track.known, None, self._take_leaves(), last=True))
        self.let_leave(self._track.known)

    def _publish_next(self, start: int) -> None:
        """The plan from ``start`` on; where there is none, places that carry the last verdicts."""
        self._changed = False
        plan = None if self.stop_reason else self._plan()
        if plan is None:
            grid = self._team.grid
            # Each turn of them takes the verdict on one S before it to the stages behind.
            plan = Plan(self._limits, idle_places(grid.ranks if grid.stages > 1 else 0))
            self._windows.idle(plan)
            self._idle = True
        self._publish(Revision(start, plan, self._take_leaves()))

    def _plan(self) -> Plan | None:
        try:
            return self._windows.next_plan()
        except PlanError as error:
            self.error = error  # what is done must not be lost
            return None

    def _publish(self, revision: Revision) -> None:
        self._team.post.publish(revision.message())
        self._track.add(revision)

    def _take_leaves(self) -> tuple[Leave, ...]:
        leaves, self._leaves = tuple(self._leaves), []
        return leaves


def _never() -> Revision:
    raise AssertionError("rank 0 makes the plan, and has none for this place")
