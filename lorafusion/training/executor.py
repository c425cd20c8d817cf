"""One stage of the pipeline: one forward, one backward, without a flush.

Stage s of S holds at most S - s places between their forward and their backward, so F(t) comes
right behind B(t-(S-s)). All stages run forwards in the order of the plan and backwards too: each
link is first in, first out, and what is received can be posted before it is sent.

Which steps a place completes stands in the plan. The backward message of place p carries, for each
of them, the running squared norm of the gradient; stage 0 judges it, steps, and sends the verdict
with the forward message of place p+S, ahead of which every other stage steps. No place of the job's
next step comes earlier, so clipping and skipping are exact and nobody waits.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from lorafusion.planner.plan import Place
from lorafusion.training.compute import Compute
from lorafusion.training.message import Shape
from lorafusion.training.optimizer import judge
from lorafusion.training.piece import Work
from lorafusion.training.residents import Residents
from lorafusion.training.team import Link, Receipt, Team


@dataclass(frozen=True)
class Report:
    """What stage 0 knows of a place once it is through. Tensors are float64.

    Attributes:
        place: It.
        losses: Sum of cross-entropies of each sample, in order.
        failed: 1 for each segment whose job was given up on some stage, else 0.
        squares: Squared gradient norm of each step that it completes.
        verdicts: On each of these steps, see :mod:`lorafusion.training.optimizer`.
    """

    place: Place
    losses: torch.Tensor
    failed: torch.Tensor
    squares: torch.Tensor
    verdicts: torch.Tensor


@dataclass(frozen=True)
class _InFlight:
    position: int
    work: Work | None
    place: Place
    receipt: Receipt | None


class Executor:
    """Runs places on this rank's stage, in order."""

    def __init__(
        self, compute: Compute, residents: Residents, team: Team, width: int, dtype: torch.dtype
    ) -> None:
        """``width`` and ``dtype`` are those of the hidden state between stages."""
        self._compute = compute
        self._residents = residents
        self._team = team
        self._width = width
        self._dtype = dtype
        self._in_flight: deque[_InFlight] = deque()
        self._completed: dict[int, Sequence[tuple[str, int]]] = {}
        self._verdicts: dict[int, torch.Tensor] = {}
        self._losses: dict[tuple[str, int], torch.Tensor] = defaultdict(self._zero)
        self._arriving: Receipt | None = None
        self.position = 0
        """Number of the next place."""

    @property
    def full(self) -> bool:
        """Whether :meth:`backward` comes next."""
        return len(self._in_flight) >= self._team.stages - self._team.stage

    @property
    def empty(self) -> bool:
        """Whether every forward has had its backward."""
        return not self._in_flight

    def forward(self, place: Place, upcoming: Callable[[], Place | None]) -> None:
        """Do the steps that are due, and run the next place.

        Args:
            place: At :attr:`position`.
            upcoming: The place behind it, if it is known once this one has arrived.
        """
        position, team = self.position, self._team
        due = self._completed.pop(position - team.stages, ())
        verdicts = self._verdicts.pop(position - team.stages, self._zero(0))
        hidden_TD = None
        if team.up is not None:
            shape = self._forward_shape(place, len(due))
            numbers, hidden_TD = self._receive(team.up, shape, "forward", self._arriving)
            verdicts = self._checked(numbers)
            self._apply(position - team.stages, due, verdicts)
        self.position += 1
        if team.up is not None:
            self._arriving = self._post(team.up, upcoming())
        work, output = None, None
        if place.kind != "noop":
            with team.recorder.span("forward", position, name_of(place)):
                work, output = self._compute.forward(place, hidden_TD)
        receipt = None
        if team.down is not None:
            shape = self._forward_shape(place, len(due))
            number = torch.tensor([position], dtype=torch.float64, device=team.device)
            self._send(team.down, shape, [number, verdicts], output)
            if place.kind != "noop":
                receipt = team.down.receive(self._backward_shape(place).size)
        if place.kind == "train":
            self._completed[position] = place.completes
        self._in_flight.append(_InFlight(position, work, place, receipt))

    def backward(self) -> Report | None:
        """Run the oldest place that is in flight backwards; returns what stage 0 learns."""
        entry, team = self._in_flight.popleft(), self._team
        place, work = entry.place, entry.work
        if work is None:
            return self._report(entry, *[self._zero(0)] * 3) if team.first else None
        gradient_TD = None
        if team.down is None:
            losses = torch.cat([part.reshape(-1) for part in work.losses])
            failed, squares = self._zero(len(place.segments)), self._zero(_steps(place))
        else:
            shape = self._backward_shape(place)
            numbers, gradient_TD = self._receive(team.down, shape, "backward", entry.receipt)
            losses, failed, squares = numbers.split(_numbers(place))
        passed = None
        if place.kind == "train":
            with team.recorder.span("backward", entry.position, name_of(place)):
                passed = self._compute.backward(work, gradient_TD)
                squares = self._complete(place, squares)
        failed = torch.maximum(failed, self._failed(place))
        if team.up is not None:
            shape = self._backward_shape(place)
            self._send(team.up, shape, [losses, failed, squares], passed)
            return None
        return self._report(entry, losses, failed, squares)

    def _report(
        self, entry: _InFlight, losses: torch.Tensor, failed: torch.Tensor, squares: torch.Tensor
    ) -> Report:
        """Judge and do the steps that the place completes; on stage 0."""
        place = entry.place
        verdicts = self._zero(0)
        if place.kind == "train":
            self._add_losses(place, losses, failed)
            verdicts = self._judge(place, squares)
            self._verdicts[entry.position] = verdicts
            self._apply(entry.position, place.completes, verdicts)
        return Report(place, losses, failed, squares, verdicts)

    def _add_losses(self, place: Place, losses: torch.Tensor, failed: torch.Tensor) -> None:
        counts = [len(segment.samples) for segment in place.segments]
        # A step with a failed part has no finite loss, and is skipped everywhere.
        failed = torch.where(failed > 0, torch.nan, 0.0)
        for segment, part, bad in zip(place.segments, losses.split(counts), failed, strict=True):
            self._losses[segment.job, segment.step] += part.sum() + bad

    def _judge(self, place: Place, squares: torch.Tensor) -> torch.Tensor:
        verdicts = [
            judge(total, self._losses.pop((job, step)), self._max_norm(job))
            for (job, step), total in zip(place.completes, squares, strict=True)
        ]
        return torch.stack(verdicts) if verdicts else self._zero(0)

    def _max_norm(self, job: str) -> float | None:
        shard = self._residents.get(job)
        return None if shard is None else shard.spec.max_grad_norm

    def _complete(self, place: Place, squares: torch.Tensor) -> torch.Tensor:
        """This stage's gradients added to the squared norms of the completed steps."""
        totals = [
            self._completed_norm(job, step, total)
            for (job, step), total in zip(place.completes, squares, strict=True)
        ]
        return torch.stack(totals) if totals else squares

    def _completed_norm(self, job: str, step: int, total: torch.Tensor) -> torch.Tensor:
        if not self._is_out(job):
            try:
                return self._compute.with_room(partial(self._residents[job].complete, total))
            except Exception as error:
                self._compute.give_up(job, f"the gradient norm of step {step}", error)
        return total * torch.nan

    def _apply(self, position: int, due: Sequence[tuple[str, int]], verdicts: torch.Tensor) -> None:
        for (job, step), verdict in zip(due, verdicts, strict=True):
            if self._is_out(job):
                continue
            shard = self._residents[job]
            self._team.recorder.stepped(position, job, step, tuple(shard.samples))
            try:
                with self._team.recorder.span("step", position, f"{job}#{step}"):
                    shard.apply(verdict)
            except Exception as error:
                self._compute.give_up(job, f"optimizer step {step}", error)
            else:
                self._residents.stepped(shard)

    def _is_out(self, job: str) -> bool:
        return job in self._compute.failed or self._residents.over(job)

    def _failed(self, place: Place) -> torch.Tensor:
        flags = [float(segment.job in self._compute.failed) for segment in place.segments]
        return torch.tensor(flags, dtype=torch.float64, device=self._team.device)

    def _post(self, up: Link, upcoming: Place | None) -> Receipt | None:
        """Post the receive of the place at :attr:`position`, where that is known by now."""
        if upcoming is None:
            return None
        due = self._completed.get(self.position - self._team.stages, ())
        return up.receive(self._forward_shape(upcoming, len(due)).size)

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
        return Shape(sum(_numbers(place)), rows, self._width, self._dtype)

    def _zero(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self._team.device)


def name_of(place: Place) -> str:
    """Such as ``a#3+b#7``: each job with its step, ``eval a#3`` for an eval."""
    jobs = "+".join(f"{segment.job}#{segment.step}" for segment in place.segments)
    return f"eval {jobs}" if place.kind == "eval" else jobs or place.kind


def _steps(place: Place) -> int:
    return len(place.completes) if place.kind == "train" else 0


def _numbers(place: Place) -> list[int]:
    """Control numbers of a backward message: losses, failed flags, squared norms."""
    samples = sum(len(segment.samples) for segment in place.segments)
    return [samples, len(place.segments), _steps(place)]
