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


@dataclass(frozen=True)
class Arriving:
    """A message that is on its way. See :class:`lorafusion.training.team.Receipt`."""

    rank: int
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
                raise lost_rank(self.rank, error) from error
        return self.buffer


class NeighbourLink:
    """To and from one neighbour. See :class:`lorafusion.training.team.Link`."""

    def __init__(
        self,
        rank: int,
        device: torch.device,
        *,
        outgoing: dist.ProcessGroup,
        incoming: dist.ProcessGroup,
    ) -> None:
        """``rank``: the neighbour's; each group holds it and this rank, for one direction."""
        self.rank = rank
        self._device = device
        self._outgoing = outgoing
        self._incoming = incoming
        self._sends = Transfers(rank, device, f"sends to rank {rank}")
        self._receives = Transfers(rank, device, f"receives from rank {rank}")

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
            return Arriving(self.rank, buffer, None, None)
        try:
            with _unprofiled():
                work = dist.irecv(buffer, self.rank, group=self._incoming)
        except RuntimeError as error:
            raise self._lost(self._receives, error) from error
        assert work is not None
        if self._device.type == "cuda":
            return Arriving(self.rank, buffer, work, None)
        return Arriving(self.rank, buffer, work, self._receives.add(work, buffer))

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
        transfers.fail(lost_rank(self.rank, error))
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


def connect_neighbours(
    device: torch.device, connect: timedelta
) -> tuple[NeighbourLink | None, NeighbourLink | None]:
    """Links to the stages before and after; every rank must call it, within ``connect``."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    # gloo's timeout is for connecting; NCCL's is for transfers, and a receive may wait for days.
    backend, timeout = ("nccl", FOREVER) if device.type == "cuda" else ("gloo", connect)
    up = down = None
    for first in range(ranks - 1):  # every rank makes every group, in the same order
        pair = [first, first + 1]
        forth = dist.new_group(pair, backend=backend, timeout=timeout)
        back = dist.new_group(pair, backend=backend, timeout=timeout)
        if rank not in pair:
            continue
        assert isinstance(forth, dist.ProcessGroup) and isinstance(back, dist.ProcessGroup)
        if rank == first:
            down = NeighbourLink(first + 1, device, outgoing=forth, incoming=back)
            down.greet(first=True)
        else:
            up = NeighbourLink(first, device, outgoing=back, incoming=forth)
            up.greet(first=False)
    return up, down
