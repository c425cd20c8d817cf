"""What a job file asks of the ranks, and how these stand in their grid."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from lorafusion.errors import LaunchError
from lorafusion.jobs.schema import RunSpec
from lorafusion.launch.codes import BAD_INPUT, exit_code
from lorafusion.launch.parallel import check_parallel
from lorafusion.models import zero_package
from lorafusion.training.grid import Grid
from tests.training import runs


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    job = {"name": "a", "dataset": {"path": str(tmp_path / "rows.jsonl")}}
    return runs.make_spec(tmp_path, [job], parallel={"zero": 3})


def test_zero_takes_replicas_of_one_stage(spec: RunSpec) -> None:
    check_parallel(spec, Grid(1, 4))
    check_parallel(spec.model_copy(update={"parallel": type(spec.parallel)()}), Grid(4, 4))
    with pytest.raises(LaunchError, match="--stages 2 its layers") as caught:
        check_parallel(spec, Grid(2, 2))
    assert exit_code(caught.value) == BAD_INPUT


def test_without_deepspeed_nothing_is_started(
    spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(zero_package, "version", missing)
    with pytest.raises(LaunchError, match=r"not installed.*'lorafusion\[zero\]'") as caught:
        check_parallel(spec, Grid(1, 2))
    assert exit_code(caught.value) == BAD_INPUT


def test_the_grid_is_that_of_deepspeeds_topology() -> None:
    """Ours is three lines, and theirs takes seconds to import: so it is asked here alone."""
    from deepspeed.runtime.pipe.topology import ProcessTopology  # pyright: ignore

    grid = Grid(stages=4, replicas=3)
    theirs: Any = ProcessTopology(axes=["replica", "stage"], dims=[3, 4])
    assert theirs.world_size() == grid.ranks
    for rank in range(grid.ranks):
        found = theirs.get_coord(rank)
        assert (found.stage, found.replica) == (grid.stage(rank), grid.replica(rank))
    peers = [[grid.rank(stage, replica) for replica in range(3)] for stage in range(4)]
    assert theirs.get_axis_comm_lists("replica") == peers
