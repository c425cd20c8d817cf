"""What each stage's memory will be full of, by kind, before anything is loaded.

What is needed at once, that is: what an allocator keeps of freed memory comes on top
(docs/memory.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from lorafusion.planner.cost import CostModel, Counts
from lorafusion.planner.devices import DeviceProfile
from lorafusion.planner.part_costs import ADAPTER_BYTES, Setup
from lorafusion.planner.shape import ModelShape

__all__ = ["StageMemory", "estimate_memory"]

# Of ADAPTER_BYTES a parameter: the weight, the sum of its gradients, AdamW's two moments.
_WEIGHT, _GRADIENT, _MOMENTS = 4, 4, 8
assert _WEIGHT + _GRADIENT + _MOMENTS == ADAPTER_BYTES


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Bytes of one stage when it is fullest.

    Attributes:
        base: The weights of its part of the base.
        adapters: Those of the adapters of all jobs.
        optimizer: AdamW's two moments.
        gradients: Sums of the running steps.
        activations: What the microbatches in flight keep for their backwards.
        working: On top while one is computed: of a layer, and where the head is, of the logits.
        runtime: The interpreter, torch, the tokenizer, before the base is loaded.
    """

    base: float
    adapters: float
    optimizer: float
    gradients: float
    activations: float
    working: float
    runtime: float

    @property
    def kinds(self) -> dict[str, float]:
        """Kind -> bytes, in the order of the attributes."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def total(self) -> float:
        """All of them."""
        return sum(self.kinds.values())


def estimate_memory(
    shape: ModelShape,
    device: DeviceProfile,
    setup: Setup,
    cost: CostModel,
    cut: Sequence[range],
    fullest: Counts,
) -> tuple[StageMemory, ...]:
    """The memory of each stage, as the cost model of this cut has it.

    In 1F1B stage s of S holds S - s microbatches between forward and backward.

    Args:
        shape: The base.
        device: What each stage runs on.
        setup: What is trained, with the ranks of all jobs.
        cost: Of the stages.
        cut: The layers of each.
        fullest: The microbatch that takes most; all in flight are taken to be like it.
    """
    width = sum(linear.inputs + linear.outputs for linear in setup.adapted(shape))
    found: list[StageMemory] = []
    for index, (stage, layers) in enumerate(zip(cost.stages, cut, strict=True)):
        parameters = len(layers) * width * sum(setup.ranks)
        found.append(
            StageMemory(
                base=stage.static_bytes - ADAPTER_BYTES * parameters,
                adapters=_WEIGHT * parameters,
                optimizer=_MOMENTS * parameters,
                gradients=_GRADIENT * parameters,
                activations=(len(cut) - index) * stage.activation(fullest),
                working=stage.working(fullest),
                runtime=device.runtime_bytes,
            )
        )
    return tuple(found)
