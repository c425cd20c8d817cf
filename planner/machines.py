"""How stages and replicas stand on the devices of some nodes, and what their links make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lorafusion.errors import PlanError
from lorafusion.planner.cost import CostModel
from lorafusion.planner.devices import DeviceProfile

__all__ = ["GRADIENT_BYTES", "Machines", "with_reduction"]

GRADIENT_BYTES = 4
"""Of a parameter of an adapter: gradients are float32."""


@dataclass(frozen=True, slots=True)
class Machines:
    """Some nodes of equal devices. A replica's stages stand side by side, inside a node first.

    Attributes:
        device: What each stage runs on.
        nodes: How many.
        gpus: Devices of a node.

    Raises:
        PlanError: Fewer than one of either.
    """

    device: DeviceProfile
    nodes: int = 1
    gpus: int = 1

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.gpus < 1:
            raise PlanError(
                f"{self.nodes} nodes of {self.gpus} devices; allowed: 1 or more of each."
            )

    @property
    def count(self) -> int:
        """All devices."""
        return self.nodes * self.gpus

    def stage_counts(self, layers: int) -> tuple[int, ...]:
        """Numbers of stages that use every device, and have a layer each."""
        return tuple(s for s in range(1, min(layers, self.count) + 1) if self.count % s == 0)

    def hops_across(self, stages: int) -> bool:
        """Whether a hop from stage to stage goes from node to node, in any replica."""
        hops = (at for at in range(1, self.count) if at % stages)
        return any(at % self.gpus == 0 for at in hops)

    def replicas_across(self, stages: int) -> bool:
        """Whether the replicas of some stage stand in different nodes."""
        return self.nodes > 1 and self.count > stages

    def reduction_bandwidth(self, stages: int) -> float:
        """Bytes per second over which the replicas of a stage add up their gradients."""
        device = self.device
        return device.network if self.replicas_across(stages) else device.link


def with_reduction(
    cost: CostModel, cut: Sequence[range], machines: Machines, *, columns: int
) -> CostModel:
    """The cost model whose optimizer steps begin with the sum of the replicas' gradients.

    A ring: 2(D-1) messages of a D-th of 4·r·columns bytes a layer. Nothing hides it. (Steps of one
    place that completes several jobs are taken to come one after the other.)

    Args:
        cost: Of one replica.
        cut: The layers of each stage.
        machines: Give the number of replicas, and the links.
        columns: Inputs and outputs of all adapted linears of a layer.
    """
    stages = len(cost.stages)
    hops = 2 * (machines.count // stages - 1)
    if not hops:
        return cost
    replicas = machines.count // stages
    sent = hops / replicas * GRADIENT_BYTES * columns
    per_layer_s = sent / machines.reduction_bandwidth(stages)
    added = [
        replace(
            stage,
            step_fixed_s=stage.step_fixed_s + hops * machines.device.latency_s,
            step_rank_s=stage.step_rank_s + per_layer_s * len(layers),
        )
        for stage, layers in zip(cost.stages, cut, strict=True)
    ]
    return replace(cost, stages=tuple(added))
