"""Which rank this process is, as torchrun says in the environment."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from lorafusion.errors import LaunchError
from lorafusion.training.grid import Grid

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
RESTARTS = "TORCHELASTIC_RESTART_COUNT"


@dataclass(frozen=True)
class World:
    """This process among the others.

    Attributes:
        rank: From 0.
        ranks: How many in all.
        local_rank: Its number on this machine.
        local_ranks: How many there are on this machine.
        address: Where all ranks meet, as ``host:port``.
        host: This machine's name.
        restarts: How often torchrun has started all ranks anew.
        has_store: torchrun listens at ``address``; else rank 0 has to.
        replicas: Pipelines that the ranks form.
        restarted: torchrun watches over the ranks, and may start all of them anew.
    """

    rank: int
    ranks: int
    local_rank: int
    local_ranks: int
    address: str
    host: str
    restarts: int = 0
    has_store: bool = False
    replicas: int = 1
    restarted: bool = False

    @property
    def grid(self) -> Grid:
        """Which stage of which replica each rank holds."""
        return Grid(self.ranks // self.replicas, self.replicas)

    def name(self, rank: int | None = None) -> str:
        """As messages call a rank; None: this one."""
        return self.grid.name(self.rank if rank is None else rank)

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> World:
        """From the environment that torchrun makes.

        Raises:
            LaunchError: Something is missing, or is no such number.
        """
        missing = [name for name in NEEDED if not environment.get(name)]
        if missing:
            raise LaunchError(
                f"This process is one rank of several, and the environment does not say which: "
                f"{', '.join(missing)} missing. Start the ranks with `lorafusion train FILE "
                "--stages S`, or with `torchrun --nproc-per-node S -m lorafusion.launch FILE "
                "--stages S`."
            )
        rank, ranks = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
        if rank >= ranks:
            raise LaunchError(
                f"RANK is {rank}, but WORLD_SIZE {ranks}; allowed: 0 to WORLD_SIZE - 1. Start "
                "the ranks with torchrun, which sets both."
            )
        return cls(
            rank=rank,
            ranks=ranks,
            local_rank=_number(environment, "LOCAL_RANK", rank),
            local_ranks=_number(environment, "LOCAL_WORLD_SIZE", ranks),
            address=f"{environment['MASTER_ADDR']}:{_number(environment, 'MASTER_PORT')}",
            host=socket.gethostname(),
            restarts=_number(environment, RESTARTS, 0),
            has_store=environment.get(AGENT_STORE) == "True",
            restarted=RESTARTS in environment,
        )


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name)
    if not text and default is not None:
        return default
    if text is None or not text.isdecimal():
        raise LaunchError(
            f"{name} is {text!r} in the environment; allowed: a whole number from 0. Start the "
            "ranks with torchrun, which sets it."
        )
    return int(text)
