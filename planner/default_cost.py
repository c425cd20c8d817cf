"""The cost model of a base on a device that nobody has measured yet.

How good it is on an H100, beside what LoRAFusion's profile and benchmark have of Llama-3.1-8B,
Qwen2.5-32B and Llama-3.1-70B. Theirs are of their kernels, and no coefficient is fitted to any:

- one layer at 4,096 tokens, taken as one sample: forward 3.97, 8.07, 13.72 ms for 4.16, 8.42, 13.55
  (-5, -4, +1%); forward and backward 8.95, 17.53, 29.42 ms for 9.08, 17.22, 27.36 (-1, +2, +8%);
- tokens per second on 1, 2 and 4 stages without a bubble, samples of 1,000 tokens, recomputation
  where they have it: 14,948, 5,169, 4,803 for 13,920-14,875, 4,947-5,121, 4,893-5,183 with theirs.

On other devices it has been compared with nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from lorafusion.errors import PlanError
from lorafusion.planner.cost import CostModel, Counts, Linear, StageCost
from lorafusion.planner.devices import DeviceProfile
from lorafusion.planner.part_costs import Setup, embedding_cost, head_cost, layer_cost
from lorafusion.planner.shape import ModelShape
from lorafusion.planner.stages import cut_layers

__all__ = ["Setup", "cut_model", "default_cost"]


def cut_model(
    shape: ModelShape, device: DeviceProfile, setup: Setup, typical: Counts, *, stages: int
) -> tuple[range, ...]:
    """The layers of each stage, so that the slowest takes as little time as can be.

    Args:
        shape: The base.
        device: What each stage runs on.
        setup: What is trained.
        typical: A microbatch like most: how long its samples are weighs attention against the rest,
            its labelled rows weigh the head.
        stages: How many.

    Raises:
        PlanError: More stages than layers, or fewer than one.
    """
    layer = layer_cost(shape, device, setup).seconds(typical)
    return cut_layers(
        [layer] * shape.layers,
        stages,
        first=embedding_cost(shape, device).seconds(typical),
        last=head_cost(shape, device).seconds(typical),
    )


def default_cost(
    shape: ModelShape, device: DeviceProfile, setup: Setup, cut: Sequence[range]
) -> CostModel:
    """The model of a base that is cut into stages.

    Args:
        shape: The base.
        device: What each stage runs on.
        setup: What is trained.
        cut: The layers of each stage, such as of :func:`cut_model`.

    Raises:
        PlanError: ``cut`` is not all layers in order, at least one a stage.
    """
    _check_cut(shape, cut)
    layer = layer_cost(shape, device, setup)
    parts = [_layers(layer, len(layers)) for layers in cut]
    parts[0] = _with(parts[0], embedding_cost(shape, device))
    head = head_cost(shape, device)
    if len(cut) == 1 and shape.tied:  # one stage holds the embedding, which is the head, once
        head = replace(head, static_bytes=0.0)
    parts[-1] = _with(parts[-1], head)
    bandwidth = device.network if setup.across_nodes else device.link
    hop = Linear(fixed=device.latency_s, token=shape.dtype_bytes * shape.hidden / bandwidth)
    source = f"default for {device.name}; not measured"
    return CostModel(tuple(parts), transfer=hop, source=source)


def _layers(layer: StageCost, count: int) -> StageCost:
    return StageCost(
        forward=layer.forward.scaled(count),
        backward=layer.backward.scaled(count),
        step_fixed_s=layer.step_fixed_s * count,
        step_rank_s=layer.step_rank_s * count,
        activation=layer.activation.scaled(count),
        static_bytes=layer.static_bytes * count,
        working=layer.working,  # of one layer at a time
    )


def _with(stage: StageCost, end: StageCost) -> StageCost:
    """A stage that has the embedding or the head too, neither of which has adapters."""
    return replace(
        stage,
        forward=stage.forward + end.forward,
        backward=stage.backward + end.backward,
        activation=stage.activation + end.activation,
        static_bytes=stage.static_bytes + end.static_bytes,
        working=stage.working + end.working,
    )


def _check_cut(shape: ModelShape, cut: Sequence[range]) -> None:
    bounds = [0, *(layers.stop for layers in cut)]
    expected = [range(start, stop) for start, stop in pairwise(bounds)]
    if list(cut) != expected or bounds[-1] != shape.layers or not all(cut):
        shown = ", ".join(f"{layers.start}-{layers.stop}" for layers in cut)
        raise PlanError(
            f"the cut [{shown}] is not the base's {shape.layers} layers; allowed: all layers, in "
            "order, at least one a stage."
        )
