"""How long a message takes to the next stage on this machine, over the links that a run uses.

``python -m lorafusion.profiling.transfer RESULT.json`` is both ends: the ranks are forks of it.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from lorafusion.launch.forks import run_forks, start_forks
from lorafusion.profiling.fit import fit_line

if TYPE_CHECKING:
    from lorafusion.launch.world import World
    from lorafusion.training.team import Team

__all__ = ["measure_transfer"]

SIZES = (1_000, 30_000, 300_000, 3_000_000)
"""Bytes of the messages: from control numbers alone to 2,000 rows of 384 columns in float32."""

TURNS = 30
TIMEOUT_S = 120


def measure_transfer() -> tuple[float, float]:
    """Seconds of any message, and of each of its bytes, between two processes of this machine.

    Half of there and back, medians of thirty.

    Raises:
        LaunchError: The processes ended badly or hang; says what they said.
    """
    seconds = start_forks(
        "lorafusion.profiling.transfer", [], what="transfers to the next stage", timeout_s=TIMEOUT_S
    )
    return fit_line([float(size) for size in SIZES], seconds)


def main(result: Path) -> int:
    """Fork two ranks, let them talk, and return what to exit with."""
    importlib.import_module("lorafusion.launch.team")  # here, rather than in the forks

    return run_forks(2, _rank, result)


def _rank(world: World) -> list[float] | None:
    from lorafusion.launch.team import TeamOptions, join_team

    with join_team(TeamOptions(world)) as team:
        found = _talk(team)
    return found if world.rank == 0 else None


def _talk(team: Team) -> list[float]:
    """There and back, size by size; the seconds of one way on rank 0."""
    import torch

    found: list[float] = []
    for size in SIZES:
        message = torch.zeros(size, dtype=torch.uint8, device=team.device)
        times: list[float] = []
        for _ in range(TURNS):
            began = time.perf_counter()
            if team.down is not None:
                team.down.send(message)
                team.down.receive(size).wait()
            elif team.up is not None:
                team.up.send(team.up.receive(size).wait())
            times.append((time.perf_counter() - began) / 2)
        found.append(median(times))
    return found


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
