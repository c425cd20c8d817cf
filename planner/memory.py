"""Memory of the stages: what is left for activations, and what microbatches take of it."""

from __future__ import annotations

import math
from dataclasses import replace

from lorafusion.errors import PlanError
from lorafusion.planner.cost import CostModel, Counts, Linear

__all__ = ["memory_limit", "memory_share", "peak_activations"]


def peak_activations(cost: CostModel) -> tuple[Linear, ...]:
    """Bytes of activations on each stage when all microbatches in flight are alike.

    In 1F1B, stage s of S holds S - s microbatches between their forward and their backward, and
    works on one of them.
    """
    stages = enumerate(cost.stages)
    count = len(cost.stages)
    return tuple(stage.activation.scaled(count - s) + stage.working for s, stage in stages)


def memory_share(cost: CostModel, memory_bytes: float) -> Linear:
    """Share of the memory that is left which what is in a microbatch takes on *any* stage, at most.

    Left is what neither the base and the adapters nor the fixed part of the microbatches in flight
    take. Each coefficient is the largest of any stage: whatever the microbatch holds, the share is
    an upper bound on every stage, and close on the fullest.

    Args:
        cost: The stages.
        memory_bytes: What the run may use of each stage's device.

    Raises:
        PlanError: Nothing is left on a stage.
    """
    rooms = zip(peak_activations(cost), _rooms(cost, memory_bytes), strict=True)
    shares = [replace(peak, fixed=0.0).scaled(1 / room).values for peak, room in rooms]
    return Linear(*map(max, zip(*shares, strict=True)))


def memory_limit(cost: CostModel, typical: Counts, memory_bytes: float) -> tuple[int | None, ...]:
    """The most tokens that a microbatch like ``typical`` may have, on each stage.

    What is in it besides tokens (labelled rows, squares, ranks) grows with them, in the same
    proportions; its segments stay.

    Args:
        cost: The stages.
        typical: A microbatch, or the sum of many in as many segments as one has.
        memory_bytes: What the run may use of each stage's device, such as
            :attr:`~lorafusion.planner.devices.DeviceProfile.usable_bytes`.

    Returns:
        Tokens; None where activations take no memory.

    Raises:
        PlanError: No tokens in ``typical``, or a stage is full without any.
    """
    if typical.tokens <= 0:
        raise PlanError(
            "memory of a microbatch: the typical one has no tokens; allowed: 1 or more."
        )
    limits: list[int | None] = []
    for peak, room in zip(peak_activations(cost), _rooms(cost, memory_bytes), strict=True):
        segments = peak(typical.scaled(0)) - peak.fixed
        each = (peak(typical) - peak.fixed - segments) / typical.tokens
        limits.append(max(0, math.floor((room - segments) / each)) if each > 0 else None)
    return tuple(limits)


def _rooms(cost: CostModel, memory_bytes: float) -> list[float]:
    """Bytes of each stage that are left for what is in the microbatches."""
    if not 0 < memory_bytes < math.inf:
        raise PlanError(
            f"memory: {memory_bytes} bytes for each stage; allowed: a finite number above 0."
        )
    taken = [
        stage.static_bytes + peak.fixed
        for stage, peak in zip(cost.stages, peak_activations(cost), strict=True)
    ]
    for index, (stage, full) in enumerate(zip(cost.stages, taken, strict=True)):
        if full >= memory_bytes:
            raise PlanError(
                f"stage {index} of {len(taken)}: the base's weights and the adapters take "
                f"{stage.static_bytes / 1e9:.1f} GB, {full / 1e9:.1f} GB with what every "
                f"microbatch needs, of the {memory_bytes / 1e9:.1f} GB that may be used; nothing "
                "is left for samples. Use more stages, or a device with more memory."
            )
    return [memory_bytes - full for full in taken]
