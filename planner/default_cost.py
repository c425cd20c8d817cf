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
