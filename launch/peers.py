"""The replicas of a stage: sums over them, and who goes on when. gloo on CPU, NCCL on GPU.

A sum goes round a ring in as many parts as there are replicas, once to be added up and once to be
told. Each part is added up at one place, so that all replicas have the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from lorafusion.launch.links import NeighbourLink, connect
from lorafusion.training.grid import Grid


class RingPeers:
    """One rank of the ring. See :class:`lorafusion.training.team.Peers`."""

    def __init__(
        self,
        replica: int,
        replicas: int,
        ring: tuple[NeighbourLink, NeighbourLink],
        chain: tuple[NeighbourLink | None, NeighbourLink | None],
    ) -> None:
        """Nothing is under way yet.

        Args:
            replica: This one.
            replicas: How many there are, at least two.
            ring: To the replica before, and to the one behind; the same one if there are two.
            chain: The same, on the CPU and without the link that closes the ring; on first stages.
        """
        self._replica = replica
        self._replicas = replicas
        self._before, self._behind = ring
        self._chain = chain

    @property
    def links(self) -> list[NeighbourLink]:
        """All that are in use, each once."""
        links = (self._before, self._behind, *self._chain)
        return list({id(link): link for link in links if link is not None}.values())

    def total(self, flat: torch.Tensor) -> None:
        """Put into a flat tensor its sum over the replicas."""
        if not flat.numel():
            return
        parts = list(flat.tensor_split(self._replicas))
        for step in range(self._replicas - 1):
            number, came = self._turn(parts, self._replica - step)
            parts[number] = parts[number] + came
        for step in range(self._replicas - 1):
            number, came = self._turn(parts, self._replica + 1 - step)
            parts[number] = came
        flat.copy_(torch.cat(parts))

    def begin(self, place: int) -> None:
        """Wait until rank 0 has begun ``place``, and tell the next replica."""
        before, behind = self._chain
        if before is not None:
            number = int(before.receive(8).wait().view(torch.int64))
            assert number == place, f"rank 0 has begun place {number}, this one comes to {place}"
        if behind is not None:
            behind.send(torch.tensor([place]).view(torch.uint8))

    def _turn(self, parts: Sequence[torch.Tensor], leaving: int) -> tuple[int, torch.Tensor]:
        """Send one part on, and receive the one before it: its number, and what came."""
        number = (leaving - 1) % self._replicas
        here = parts[number]
        self._behind.send(parts[leaving % self._replicas].view(torch.uint8))
        came = self._before.receive(here.numel() * here.element_size()).wait()
        return number, came.view(here.dtype)


def connect_peers(grid: Grid, device: torch.device, within: timedelta) -> RingPeers | None:
    """The ring of this rank's stage; every rank must call it. None: there is one replica."""
    if grid.replicas == 1:
        return None
    rank, last = dist.get_rank(), grid.replicas - 1
    neighbours = [(one, one + 1) for one in range(last)]
    # Two replicas are a ring without a link that closes it.
    closed = [*neighbours, (0, last)] if last > 1 else neighbours
    ring: dict[int, NeighbourLink] = {}
    for stage in range(grid.stages):
        ring |= _connect(grid, stage, closed, device, within)
    chain = _connect(grid, 0, neighbours, torch.device("cpu"), within)
    stage, replica = grid.stage(rank), grid.replica(rank)
    before, behind = (grid.rank(stage, (replica + step) % grid.replicas) for step in (-1, 1))
    ends = chain.get(rank - grid.stages), chain.get(rank + grid.stages)
    return RingPeers(replica, grid.replicas, (ring[before], ring[behind]), ends)


def _connect(
    grid: Grid,
    stage: int,
    pairs: Sequence[tuple[int, int]],
    device: torch.device,
    within: timedelta,
) -> dict[int, NeighbourLink]:
    """This rank's links to other replicas of a stage, by their ranks. Every rank makes them all."""
    found: dict[int, NeighbourLink] = {}
    for one, other in pairs:
        link = connect(grid, (grid.rank(stage, one), grid.rank(stage, other)), device, within)
        if link is not None:
            found[link.rank] = link
    return found
