"""Bytes of a base's parts and of adapters on it, counted on the modules themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lorafusion.adapters.targets import match_targets
from lorafusion.errors import PlanError
from lorafusion.models.load import Base
from lorafusion.planner.cost import Linear
from lorafusion.planner.devices import DeviceProfile
from lorafusion.planner.part_costs import ADAPTER_BYTES, Setup, head_cost, layer_cost
from lorafusion.planner.shape import ModelShape

__all__ = ["BaseBytes", "base_bytes"]


@dataclass(frozen=True, slots=True)
class BaseBytes:
    """Sizes that need no measurement.

    Attributes:
        layers: How many layers.
        tied: Whether the head is the embedding.
        layer: Bytes of a layer's weights.
        embedding: Of the embedding's.
        head: Of the head's, also where it is the embedding's.
        adapters: Of all adapters in a layer, with gradients and AdamW's state.
        working: What a layer, and what the head needs while it runs.
    """

    layers: int
    tied: bool
    layer: float
    embedding: float
    head: float
    adapters: float
    working: tuple[Linear, Linear]


def base_bytes(
    base: Base, targets: str | tuple[str, ...], ranks: Sequence[int], device: DeviceProfile
) -> BaseBytes:
    """Count them.

    What a part needs while it runs is as the default cost model has it; nothing for a base that it
    does not know.

    Args:
        base: Whole, with or without adapters on it.
        targets: The linears that have adapters, as PEFT's ``target_modules``.
        ranks: Of all adapters.
        device: Where it runs.
    """
    model: Any = base.model
    embedding: torch.Tensor = model.get_input_embeddings().weight
    head: torch.Tensor = model.get_output_embeddings().weight
    tied = head is embedding
    layers = base.part.total
    rest = sum(tensor.nbytes for tensor in base.tensors.values())
    rest -= embedding.nbytes + (0 if tied else head.nbytes)
    shapes = dict(zip(base.names.linears, base.names.shapes, strict=True))
    width = sum(sum(shapes[name]) for name in match_targets(base.names, targets))
    return BaseBytes(
        layers=layers,
        tied=tied,
        layer=rest / layers,
        embedding=embedding.nbytes,
        head=head.nbytes,
        adapters=ADAPTER_BYTES * width * sum(ranks) / layers,
        working=_working(base, device),
    )


def _working(base: Base, device: DeviceProfile) -> tuple[Linear, Linear]:
    dtype = str(base.dtype).removeprefix("torch.")
    try:
        shape = ModelShape.from_config(base.model.config.to_dict(), dtype)
    except PlanError:
        return Linear(), Linear()
    return layer_cost(shape, device, Setup()).working, head_cost(shape, device).working
