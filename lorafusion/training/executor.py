"""One stage of the pipeline: one forward, one backward, without a flush.

Stage s of S holds at most S - s turns between their forward and their backward, so F(t) comes
right behind B(t-(S-s)). All stages run forwards in the order of the plan and backwards too: each
link is first in, first out, and what is received can be posted before it is sent.

Which steps a turn completes stands in the plan. In its backward each stage adds up their gradients
over the replicas. The backward message of a place carries, for each step that it completes, the
running squared norm of the gradient; the first stages judge it, step, and send the verdict with the
forward message S turns later, ahead of which every other stage steps. No place of the job's next
step comes earlier, so clipping and skipping are exact and nobody waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch

from lorafusion.planner.plan import Place
from lorafusion.training.compute import Compute
from lorafusion.training.judge import Brought, Judge, Report, counts, reports, steps_of
from lorafusion.training.message import Shape
from lorafusion.training.piece import Work
from lorafusion.training.residents import Residents
from lorafusion.training.team import Link, Receipt, Team
from lorafusion.training.turn import Turn


@dataclass(frozen=True)
class _InFlight:
    position: int
    work: Work | None
    turn: Turn
    place: Place
    receipt: Receipt | None


class Executor:
    """Runs turns on this rank's stage, in order: of each the place of this replica."""

    def __init__(
        self, compute: Compute, residents: Residents, team: Team, width: int, dtype: torch.dtype
    ) -> None:
        """``width`` and ``dtype`` are those of the hidden state between stages."""
        self._compute = compute
        self._residents = residents
        self._team = team
        self._width = width
        self._dtype = dtype
        self._judge = Judge(residents, team)
        self._lag = team.stages * team.replicas
        self._in_flight: deque[_InFlight] = deque()
        self._turns: dict[int, Turn] = {}
        self._verdicts: dict[int, torch.Tensor] = {}
        self._arriving: Receipt | None = None
        self.position = 0
        """Number of the first place of the next turn."""

    @property
    def full(self) -> bool:
        """Whether :meth:`backward` comes next."""
        return len(self._in_flight) >= self._team.stages - self._team.stage

    @property
    def empty(self) -> bool:
        """Whether every forward has had its backward."""
        return not self._in_flight

    def forward(self, turn: Turn, upcoming: Callable[[], Turn | None]) -> None:
        """Do the steps that are due, and run the place of this replica.

        Args:
            turn: At :attr:`position`.
            upcoming: The turn behind it, if it is known once this one has begun.
        """
        position, team = self.position, self._team
        place = turn.places[team.replica]
        due = self._turns.pop(position - self._lag, None)
        verdicts = self._verdicts.pop(position - self._lag, self._zero(0))
        steps = 0 if due is None else len(due.completed)
        hidden_TD = None
        if team.up is None:
            self._begin()
        else:
            shape = self._forward_shape(place, steps)
            numbers, hidden_TD = self._receive(team.up, shape, "forward", self._arriving)
            verdicts = self._checked(numbers)
            if due is not None:
                self._apply(position - self._lag, due, verdicts)
        self.position += team.replicas
        self._arriving = self._post(upcoming())
        work, output = None, None
        if place.kind != "noop":
            with team.recorder.span("forward", position + team.replica, name_of(place)):
                work, output = self._compute.forward(place, hidden_TD)
        receipt = None
        if team.down is not None:
            shape = self._forward_shape(place, steps)
            number = torch.tensor([position], dtype=torch.float64, device=team.device)
            self._send(team.down, shape, [number, verdicts], output)
            if place.kind != "noop":
                receipt = team.down.receive(self._backward_shape(place).size)
        self._turns[position] = turn
        self._in_flight.append(_InFlight(position, work, turn, place, receipt))

    def backward(self) -> Sequence[Report]:
        """Run the oldest turn that is in flight backwards; returns what rank 0 learns."""
        entry, team = self._in_flight.popleft(), self._team
        brought, gradient_TD = self._from_behind(entry)
        passed = None
        with self._backwards(entry):
            if entry.work is not None and entry.place.kind == "train":
                passed = self._compute.backward(entry.work, gradient_TD)
            with self._waiting("the passes of the other replicas"):
                self._compute.passes.finish()
            brought = brought._replace(squares=self._complete(entry, brought.squares))
        if entry.work is not None:
            failed = torch.maximum(brought.failed, self._failed(entry.place))
            brought = brought._replace(failed=failed)
            if team.up is not None:
                self._send(team.up, self._backward_shape(entry.place), brought, passed)
        return () if team.up is not None else self._end(entry, brought)

    def _from_behind(self, entry: _InFlight) -> tuple[Brought, torch.Tensor | None]:
        """What the stages behind know of the place, and its gradient."""
        place, work, team = entry.place, entry.work, self._team
        if work is None:
            return Brought(*[self._zero(0)] * 3), None
        if team.down is None:
            losses = torch.cat([part.reshape(-1) for part in work.losses])
            segments, steps = len(place.segments), steps_of(place)
            return Brought(losses, self._zero(segments), self._zero(steps)), None
        shape = self._backward_shape(place)
        numbers, gradient_TD = self._receive(team.down, shape, "backward", entry.receipt)
        return Brought(*numbers.split(counts(place))), gradient_TD

    def _end(self, entry: _InFlight, own: Brought) -> Sequence[Report]:
        """Judge and do the steps that the turn completes; on first stages."""
        with self._waiting("what the other replicas' places brought"):
            brought = self._judge.gather(entry.turn, own)
        verdicts = self._judge.verdicts(entry.turn, brought)
        self._verdicts[entry.position] = verdicts
        self._apply(entry.position, entry.turn, verdicts)
        return reports(entry.turn, brought, verdicts) if self._team.first else ()

    def _complete(self, entry: _InFlight, squares: torch.Tensor) -> torch.Tensor:
        """Add up the gradients of the completed steps over the replicas.

        Returns:
            The squared norms of those that this replica's place completes, with this stage's.
        """
        norms: list[torch.Tensor] = []
        for replica, job, step in entry.turn.completed:
            self._add_up(job, step)
            if replica == self._team.replica:
                norms.append(self._norm(job, step, squares[len(norms)]))
            elif self._team.first:
                self._norm(job, step, self._zero())  # so that it can say what is not finite
        return torch.stack(norms) if norms else squares

    def _add_up(self, job: str, step: int) -> None:
        # A job that is shared is on all replicas or on none: it leaves them at the same place.
        shard = self._residents.get(job)
        if shard is None:
            return
        if job in self._compute.failed:
            shard.gradients.spoil()  # the step is skipped on all of them
        self._compute.with_room(shard.gradients.close)
        # An error in here is no job's own: the other replicas wait.
        with self._waiting(f"gradients of {job}#{step} of the other replicas"):
            shard.add_up(self._team.sharers)

    def _norm(self, job: str, step: int, total: torch.Tensor) -> torch.Tensor:
        shard = self._residents.get(job)
        if shard is None:
            return total
        if job not in self._compute.failed:
            try:
                return self._compute.with_room(partial(shard.complete, total))
            except Exception as error:
                self._compute.give_up(job, f"the gradient norm of step {step}", error)
        return total * torch.nan

    def _apply(self, position: int, turn: Turn, verdicts: torch.Tensor) -> None:
        for (replica, job, step), verdict in zip(turn.completed, verdicts, strict=True):
            if self._residents.over(job):
                continue
            shard = self._residents[job]
            if job in self._compute.failed:
                shard.skip()
                continue
            place = position + replica
            self._team.recorder.stepped(place, job, step, tuple(shard.samples))
            try:
                with self._team.recorder.span("step", place, f"{job}#{step}"):
                    shard.apply(verdict)
            except Exception as error:
                self._compute.give_up(job, f"optimizer step {step}", error)
            else:
                self._residents.stepped(shard)

    def _failed(self, place: Place) -> torch.Tensor:
        flags = [float(segment.job in self._compute.failed) for segment in place.segments]
        return torch.tensor(flags, dtype=torch.float64, device=self._team.device)

    def _begin(self) -> None:
        """Wait until rank 0 has begun: it may still change the plan up to here."""
        with self._waiting("rank 0"):
            self._team.peers.begin(self.position)

    def _post(self, upcoming: Turn | None) -> Receipt | None:
        """Post the receive of the place at :attr:`position`, where that is known by now."""
        if upcoming is None or self._team.up is None:
            return None
        due = self._turns.get(self.position - self._lag)
        shape = self._forward_shape(
            upcoming.places[self._team.replica], 0 if due is None else len(due.completed)
        )
        return self._team.up.receive(shape.size)

    def _checked(self, numbers: torch.Tensor) -> torch.Tensor:
        """The verdicts behind the place's number, which is looked at where that costs no wait."""
        if numbers.device.type == "cpu":
            assert numbers[0] == self.position, f"place {numbers[0]} came for {self.position}"
        return numbers[1:]

    def _receive(
        self, link: Link, shape: Shape, what: str, receipt: Receipt | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        neighbour = self._team.stage + (1 if link is self._team.down else -1)
        with self._team.recorder.span("wait", self.position, f"{what} of stage {neighbour}"):
            message = (receipt or link.receive(shape.size)).wait()
        return shape.unpack(message)

    def _send(
        self,
        link: Link,
        shape: Shape,
        numbers: Sequence[torch.Tensor],
        body_TD: torch.Tensor | None,
    ) -> None:
        with self._team.recorder.span("send", self.position, ""):
            link.send(shape.pack(numbers, body_TD))

    def _forward_shape(self, place: Place, verdicts: int) -> Shape:
        # The number of the place stands first, so that a no-op has a message too: without one, a
        # rank could be past a place where rank 0 still changes the plan.
        return Shape(1 + verdicts, place.tokens, self._width, self._dtype)

    def _backward_shape(self, place: Place) -> Shape:
        rows = place.tokens if place.kind == "train" else 0
        return Shape(sum(counts(place)), rows, self._width, self._dtype)

    def _backwards(self, entry: _InFlight) -> AbstractContextManager[None]:
        if entry.place.kind != "train":
            return nullcontext()
        number = entry.position + self._team.replica
        return self._team.recorder.span("backward", number, name_of(entry.place))

    @contextmanager
    def _waiting(self, what: str) -> Generator[None]:
        """For other replicas, where there are some."""
        if self._team.replicas == 1:
            yield
            return
        with self._team.recorder.span("wait", self.position, what):
            yield

    def _zero(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self._team.device)


def name_of(place: Place) -> str:
    """Such as ``a#3+b#7``: each job with its step, ``eval a#3`` for an eval."""
    jobs = "+".join(f"{segment.job}#{segment.step}" for segment in place.segments)
    return f"eval {jobs}" if place.kind == "eval" else jobs or place.kind
