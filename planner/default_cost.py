"""The cost model of a base on a device that nobody has measured yet.

No coefficient is fitted to a measurement. docs/what-if.md has it beside LoRAFusion's published
layer times and tokens per second on H100s, with the error of each; the table is made by
``lorafusion.bench.what_if``. On other devices it has been compared with nothing.
"""

from __future__ import annotations

from lorafusion.planner.cost import Linear
from lorafusion.planner.devices import DeviceProfile
from lorafusion.planner.part_costs import Setup, embedding_cost, head_cost, layer_cost
from lorafusion.planner.parts import PartCosts
from lorafusion.planner.shape import ModelShape

__all__ = ["Setup", "default_parts"]


def default_parts(shape: ModelShape, device: DeviceProfile, setup: Setup) -> PartCosts:
    """What the parts of a base cost.

    Args:
        shape: The base.
        device: What each stage runs on.
        setup: What is trained.
    """
    bandwidth = device.network if setup.across_nodes else device.link
    return PartCosts(
        layers=shape.layers,
        tied=shape.tied,
        embedding=embedding_cost(shape, device),
        layer=layer_cost(shape, device, setup),
        head=head_cost(shape, device),
        transfer=Linear(fixed=device.latency_s, token=shape.dtype_bytes * shape.hidden / bandwidth),
        source=f"default for {device.name}; not measured",
    )
