"""Which layers each stage holds, and whether they are recomputed: predicted from the config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorafusion.errors import PlanError
from lorafusion.jobs.schema import RunSpec
from lorafusion.planner.capacity import typical_counts
from lorafusion.planner.cost import CostModel, Counts
from lorafusion.planner.default_cost import Setup, default_parts
from lorafusion.planner.devices import DeviceProfile
from lorafusion.planner.machines import Machines, with_reduction
from lorafusion.planner.memory import memory_limit
from lorafusion.planner.queue import JobQueue
from lorafusion.planner.shape import ModelShape
from lorafusion.planner.stages import cut_layers
from lorafusion.training.data import JobData
from lorafusion.training.queues import adapter_rank

# Steps of each job that stand for its mix of lengths.
TYPICAL_STEPS = 16


@dataclass(frozen=True)
class Cut:
    """How the base is run.

    Attributes:
        layers: Of each stage.
        recompute: Whether each layer's forward is repeated in the backward.
        note: What the user should know of the choice.
        cost: Predicts the stages, with the sum over replicas; None where nothing can.
    """

    layers: tuple[range, ...]
    recompute: bool
    note: str | None = None
    cost: CostModel | None = None


@dataclass(frozen=True)
class Ground:
    """What the base is cut for.

    Attributes:
        device: What each stage runs on.
        memory_bytes: What a stage may use of it.
        stages: How many.
        capacity: Most tokens of a microbatch.
        replicas: Pipelines side by side.
        share: How much of its part of the base a stage keeps. Below 1 it has one layer, or the
            embedding, whole besides.
    """

    device: DeviceProfile
    memory_bytes: float
    stages: int
    capacity: int
    replicas: int = 1
    share: float = 1.0


def choose_cut(spec: RunSpec, config: Any, data: Sequence[JobData], ground: Ground) -> Cut:
    """Cut so that the slowest stage takes as little time as can be.

    Args:
        spec: The run.
        config: Of the base.
        data: Of the jobs, in the order of ``spec``; those that cannot be trained left out.
        ground: What for.

    Raises:
        PlanError: More stages than layers.
    """
    wanted = spec.recompute is True
    layers: int = config.get_text_config().num_hidden_layers
    try:
        shape = ModelShape.from_config(config.to_dict(), spec.dtype)
    except PlanError as error:
        cut = cut_layers([1.0] * layers, ground.stages)
        note = f"the base is cut into equal numbers of layers, since {error}"
        return Cut(cut, wanted, note if ground.stages > 1 else None)
    if not data:
        return Cut(cut_layers([1.0] * layers, ground.stages), wanted)
    ranks = tuple(adapter_rank(job) for job in spec.jobs)
    typical = typical_counts([_sample(index, job) for index, job in enumerate(data)])
    setup = Setup("all-linear", ranks, wanted)
    parts = default_parts(shape, ground.device, setup)
    cut = parts.cut(typical, stages=ground.stages)
    cost = parts.model(cut)
    machines = Machines(ground.device, 1, ground.stages * ground.replicas)
    columns = sum(linear.inputs + linear.outputs for linear in setup.adapted(shape))
    shared = with_reduction(cost, cut, machines, columns=columns)
    if spec.recompute != "auto" or _fits(cost, typical, ground, shape):
        return Cut(cut, wanted, cost=shared)
    return Cut(
        cut,
        recompute=True,
        note=f"activations of microbatches of {ground.capacity} tokens are predicted not to fit "
        f"into {ground.memory_bytes / 1e9:.1f} GB a stage: each layer's forward is repeated in the "
        "backward (recompute: false keeps them)",
        cost=shared,
    )


def _fits(cost: CostModel, typical: Counts, ground: Ground, shape: ModelShape) -> bool:
    try:
        limits = memory_limit(cost, typical, ground.memory_bytes + _elsewhere(shape, ground.share))
    except PlanError:  # nothing is left for activations, so they had better be small
        return False
    return all(limit is None or limit >= ground.capacity for limit in limits)


def _elsewhere(shape: ModelShape, share: float) -> float:
    """Bytes of the whole base that are not here while it runs."""
    if share == 1:
        return 0.0
    layer = shape.dtype_bytes * shape.layer_parameters
    words = shape.dtype_bytes * shape.hidden * shape.vocab
    whole = layer * shape.layers + words * (1 if shape.tied else 2)
    return whole * (1 - share) - max(layer, words)


def _sample(index: int, data: JobData) -> JobQueue:
    steps = range(1, min(TYPICAL_STEPS, data.order.total_steps) + 1)
    return JobQueue(str(index), tuple(data.batch(step) for step in steps))
