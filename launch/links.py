"""Data between neighbouring stages over ``torch.distributed``: gloo on CPU, NCCL on GPU.

Each direction of each pair of neighbours has a process group of its own: with NCCL the transfers of
a group run one after another, and a receive that was posted early would hold up a send.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from lorafusion.errors import LorafusionError
from lorafusion.launch.ranks import FOREVER, lost_rank
from lorafusion.launch.transfers import Arrival, Transfers
from lorafusion.training.grid import Grid


@dataclass(frozen=True)
class Arriving:
    """A message that is on its way. See :class:`lorafusion.training.team.Receipt`."""

    sender: str
    buffer: torch.Tensor
    work: dist.Work | None
    arrival: Arrival | None

    def wait(self) -> torch.Tensor:
        """Its bytes; on a GPU what is queued next waits for them, not the host.

        Raises:
            LostRankError: The sender is gone.
            LaunchError: The run has been ended by another rank.
        """
        if self.arrival is not None:
            return self.arrival.result()
        if self.work is not None:
            try:
                self.work.wait()
            except RuntimeError as error:
                raise lost_rank(self.sender, error) from error
        return self.buffer


class NeighbourLink:
    """To and from one neighbour. See :class:`lorafusion.training.team.Link`."""

    def __init__(
        self,
        rank: int,
        name: str,
        device: torch.device,
        *,
        outgoing: dist.ProcessGroup,
        incoming: dist.ProcessGroup,
    ) -> None:
        """Nothing is under way yet.

        Args:
            rank: The neighbour's.
            name: As messages call it.
            device: Where the messages are.
            outgoing: Holds it and this rank; for what is sent.
            incoming: The same, for what is received.
        """
        self.rank = rank
        self._name = name
        self._device = device
        self._outgoing = outgoing
        self._incoming = incoming
        self._sends = Transfers(name, device, f"sends to rank {rank}")
        self._receives = Transfers(name, device, f"receives from rank {rank}")

    def send(self, message: torch.Tensor) -> None:
        """Send uint8 [size] and return at once; it is kept alive until it has been sent.

        Raises:
            LostRankError: The neighbour is gone.
        """
        self._raise(self._sends)
        if not message.numel():
            return
        try:
            with _unprofiled():
                work = dist.isend(message, self.rank, group=self._outgoing)
        except RuntimeError as error:
            raise self._lost(self._sends, error) from error
        assert work is not None
        self._sends.add(work, message)

    def receive(self, size: int) -> Arriving:
        """Post a receive of ``size`` bytes: they match the neighbour's messages in order.

        Raises:
            LostRankError: The neighbour is gone.
        """
        self._raise(self._receives)
        buffer = torch.empty(size, dtype=torch.uint8, device=self._device)
        if not size:
            return Arriving(self._name, buffer, None, None)
        try:
            with _unprofiled():
                work = dist.irecv(buffer, self.rank, group=self._incoming)
        except RuntimeError as error:
            raise self._lost(self._receives, error) from error
        assert work is not None
        if self._device.type == "cuda":
            return Arriving(self._name, buffer, work, None)
        return Arriving(self._name, buffer, work, self._receives.add(work, buffer))

    def greet(self, *, first: bool) -> None:
        """One byte each way, in turn; ``first`` begins.

        NCCL connects at a group's first transfer, and then both ends wait for each other. Later,
        with receives posted that nobody sends for yet, that would be a deadlock.
        """
        byte = torch.zeros(1, dtype=torch.uint8, device=self._device)
        if first:
            self.send(byte)
            self.receive(1).wait()
        else:
            self.receive(1).wait()
            self.send(byte)

    def fail(self, error: LorafusionError) -> None:
        """End every wait with ``error``, now and later."""
        self._sends.fail(error)
        self._receives.fail(error)

    def drain(self, timeout_s: float | None = None) -> bool:
        """Wait until all that was sent has left; False: not within the time.

        Raises:
            LostRankError: The neighbour is gone.
        """
        done = self._sends.drain(timeout_s)
        self._raise(self._sends)
        return done

    def close(self, deadline: float) -> bool:
        """End the threads once all transfers are done; False: one still waits by then.

        Args:
            deadline: As ``time.monotonic()`` counts.
        """
        ended = self._sends.close(deadline)
        return self._receives.close(deadline) and ended

    def _raise(self, transfers: Transfers) -> None:
        if transfers.error is not None:
            raise transfers.error

    def _lost(self, transfers: Transfers, error: RuntimeError) -> LorafusionError:
        transfers.fail(lost_rank(self._name, error))
        assert transfers.error is not None
        return transfers.error


@contextmanager
def _unprofiled() -> Generator[None]:
    """Keep torch's profiler from watching a transfer that begins here.

    It notes the transfer's end in an event of its own, whenever that is. A receive is posted early,
    so it often ends after the profile was read and its events freed: about one profiled run in four
    of two stages died of the write to freed memory (torch 2.13).
    """
    enable = torch._C._autograd._enable_record_function  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]
    enable(False)
    try:
        yield
    finally:
        enable(True)


def connect(
    grid: Grid, pair: tuple[int, int], device: torch.device, within: timedelta
) -> NeighbourLink | None:
    """A link between two ranks; None on the others, which must all call it too.

    Args:
        grid: Of all ranks.
        pair: The two.
        device: Where the messages are; the same kind on both.
        within: Time to connect.
    """
    # gloo's timeout is for connecting; NCCL's is for transfers, and a receive may wait for days.
    backend, timeout = ("nccl", FOREVER) if device.type == "cuda" else ("gloo", within)
    forth = dist.new_group(list(pair), backend=backend, timeout=timeout)
    back = dist.new_group(list(pair), backend=backend, timeout=timeout)
    rank = dist.get_rank()
    if rank not in pair:
        return None
    assert isinstance(forth, dist.ProcessGroup) and isinstance(back, dist.ProcessGroup)
    first, second = pair
    if rank == first:
        link = NeighbourLink(second, grid.name(second), device, outgoing=forth, incoming=back)
    else:
        link = NeighbourLink(first, grid.name(first), device, outgoing=back, incoming=forth)
    link.greet(first=rank == first)
    return link


def connect_neighbours(
    grid: Grid, device: torch.device, within: timedelta
) -> tuple[NeighbourLink | None, NeighbourLink | None]:
    """Links to the stages before and after; every rank must call it, within that time."""
    rank = dist.get_rank()
    up = down = None
    for replica in range(grid.replicas):  # every rank makes every group, in the same order
        for stage in range(grid.stages - 1):
            first, second = (grid.rank(each, replica) for each in (stage, stage + 1))
            link = connect(grid, (first, second), device, within)
            up, down = (link if rank == second else up), (link if rank == first else down)
    return up, down
