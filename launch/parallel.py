"""What a job file asks of the ranks, against how many there are."""

from __future__ import annotations

from lorafusion.errors import LaunchError
from lorafusion.jobs.schema import RunSpec
from lorafusion.models.zero_package import require_deepspeed
from lorafusion.training.grid import Grid


def check_parallel(spec: RunSpec, grid: Grid) -> None:
    """Before anything is loaded.

    Raises:
        LaunchError: It asks for what these ranks cannot do, or a package is not installed.
    """
    if not spec.parallel.zero:
        return
    if grid.stages > 1:
        raise LaunchError(
            f"`parallel: {{zero: 3}}` cuts each matrix of the base over the ranks, and --stages "
            f"{grid.stages} its layers; allowed: one of the two. Leave --stages out and give "
            "--replicas, or remove `zero`."
        )
    require_deepspeed()
