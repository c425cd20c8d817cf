"""What a start does where there are not as many ranks as were asked for.

torchrun with ``--nnodes MIN:MAX`` starts all ranks anew when a machine is lost or comes, with as
many as there are then. They go on from the checkpoints, over whatever stages and replicas they can
form, or wait until torchrun starts them again with all of them.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Literal, NoReturn

from lorafusion.errors import LaunchError
from lorafusion.launch.world import World
from lorafusion.training.grid import Grid

Elastic = Literal["refuse", "recut", "wait"]
"""What to do then: end, form another grid, or wait for the ranks that lack."""

_LOOK_S = 1.0


def recut(grid: Grid, ranks: int, layers: int) -> Grid:
    """A grid of so many ranks, as near to ``grid`` as can be.

    It keeps the stages where they fit, and has other replicas; else it has more stages, since each
    then holds less of the base, or where no number of them fits, as many as can be.
    """
    fitting = [stages for stages in range(1, min(ranks, layers) + 1) if ranks % stages == 0]
    more = [stages for stages in fitting if stages >= grid.stages]
    stages = min(more) if more else max(fitting)
    return Grid(stages, ranks // stages)


def describe(grid: Grid) -> str:
    """Such as ``2 stages and 3 replicas``."""
    words = [f"{grid.stages} stage{'s' if grid.stages > 1 else ''}"]
    if grid.replicas > 1:
        words.append(f"{grid.replicas} replicas")
    return " and ".join(words)


def wait_for_ranks(world: World, grid: Grid, say: Callable[[str], None]) -> NoReturn:
    """Wait until torchrun ends this process, to start it again with all ranks.

    Args:
        world: Which rank this is.
        grid: That is waited for.
        say: Told of it.

    Raises:
        LaunchError: Nobody would start it again, or there are too many ranks.
    """
    if world.ranks > grid.ranks or not world.restarted:
        why = (
            "no further ranks are needed"
            if world.ranks > grid.ranks
            else "nobody would start these again: they were not started by torchrun"
        )
        raise LaunchError(
            f"There are {world.ranks} ranks instead of {grid.ranks} ({describe(grid)}), and "
            f"--elastic wait cannot help: {why}. Start {grid.ranks} ranks, or give --elastic recut."
        )
    say(
        f"waiting for ranks: there are {world.ranks} of {grid.ranks} ({describe(grid)}). torchrun "
        "starts all of them again when more machines join, as its --nnodes MIN:MAX allows."
    )
    if world.rank:  # which would wait for rank 0 to tell it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while True:
        time.sleep(_LOOK_S)
