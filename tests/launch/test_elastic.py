"""Which grid the ranks form where there are not as many as were asked for."""

from __future__ import annotations

import pytest

from lorafusion.errors import LaunchError
from lorafusion.launch.elastic import describe, recut, wait_for_ranks
from lorafusion.launch.world import World
from lorafusion.training.grid import Grid


@pytest.mark.parametrize(
    ("ranks", "found"),
    [
        (8, (4, 2)),
        (4, (4, 1)),
        (12, (4, 3)),
        (6, (6, 1)),  # more stages hold less each
        (3, (3, 1)),
        (1, (1, 1)),
        (10, (5, 2)),
        (22, (2, 11)),  # 11 and 22 are above the layers
    ],
)
def test_the_nearest_grid(ranks: int, found: tuple[int, int]) -> None:
    assert recut(Grid(4, 2), ranks, layers=8) == Grid(*found)


def test_a_grid_in_words() -> None:
    assert describe(Grid(1, 1)) == "1 stage"
    assert describe(Grid(4, 2)) == "4 stages and 2 replicas"


@pytest.mark.parametrize(
    ("ranks", "torchrun", "words"),
    [(8, True, "no further ranks"), (2, False, "not started by torchrun")],
)
def test_waiting_is_refused_where_it_has_no_end(ranks: int, torchrun: bool, words: str) -> None:
    world = World(0, ranks, 0, ranks, "localhost:1", "here", restarted=torchrun)
    said: list[str] = []
    with pytest.raises(LaunchError, match=words):
        wait_for_ranks(world, Grid(2, 2), said.append)
    assert said == []
