"""The base as a rank of a run holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lorafusion.errors import LaunchError
from lorafusion.jobs.schema import RunSpec
from lorafusion.models.load import Base, load_base
from lorafusion.models.part import Part
from lorafusion.training.team import Team

if TYPE_CHECKING:
    from lorafusion.models.zero import Zero


def kept_share(spec: RunSpec, device: torch.device, replicas: int) -> float:
    """How much of its part of the base a rank keeps where it computes."""
    if not spec.parallel.zero:
        return 1.0
    return 0.0 if spec.parallel.offload == "cpu" and device.type != "cpu" else 1 / replicas


def note_on_gathers(zero: Zero, training_s: float) -> str:
    """What gathering weights took, to be shown."""
    found = zero.gathers()
    return (
        f"ZeRO-3: rank 0 gathered {found.nbytes / 1e9:.2f} GB of weights in {found.number} "
        f"collectives (DeepSpeed's comms logger), {found.seconds:.1f} s of {training_s:.1f} s"
    )


def load_own(spec: RunSpec, part: Part, team: Team) -> Base:
    """Load this rank's part; with ``zero: 3`` its share of every matrix, together with the others.

    Raises:
        ModelError: The base cannot be used.
        LaunchError: The ranks have nothing to gather weights with.
    """
    if not spec.parallel.zero:
        exact = spec.deterministic
        return load_base(spec.base_model, spec.dtype, part, team.device, aligned=exact)
    if team.gathering is None:
        raise LaunchError(
            "`parallel: {zero: 3}` needs processes that it cuts the base over: start the run with "
            "`lorafusion train FILE --replicas D`, or remove it."
        )
    from lorafusion.models.load_sharded import load_sharded
    from lorafusion.models.zero import Zero

    offload = spec.parallel.offload == "cpu"
    zero = Zero(team.device, team.gathering, offload=offload)
    return load_sharded(spec.base_model, spec.dtype, team.device, zero)
