"""``python -m tests.launch.forks_program WHAT RESULT``: ranks that do as they are told."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from lorafusion.launch.forks import run_forks
from lorafusion.launch.world import World


def _numbers(world: World) -> list[int] | None:
    return [world.ranks, world.local_ranks, os.getpid()] if world.rank == 0 else None


def _one_fails(world: World) -> None:
    if world.rank == 1:
        raise RuntimeError("rank 1 does not want to")
    time.sleep(600)


def _hang(_world: World) -> None:
    sys.stderr.write(f"{os.getpid()}\n")
    time.sleep(600)


if __name__ == "__main__":
    act = {"numbers": _numbers, "fail": _one_fails, "hang": _hang}[sys.argv[1]]
    sys.exit(run_forks(3, act, Path(sys.argv[2])))
