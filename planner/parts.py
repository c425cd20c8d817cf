"""What a base's parts cost, and the cost model of any cut of them into stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from lorafusion.errors import PlanError
from lorafusion.planner.cost import CostModel, Counts, Linear, StageCost
from lorafusion.planner.stages import cut_layers

__all__ = ["PartCosts"]


@dataclass(frozen=True, slots=True)
class PartCosts:
    """A base whose layers are alike.

    Attributes:
        layers: How many.
        tied: Whether the head is the embedding, so that one stage that has both holds it once.
        embedding: Of the embedding.
        layer: Of one layer; its ``working`` is what one layer needs while it runs.
        head: Of the final norm, the head and the loss.
        transfer: Seconds in which a microbatch's hidden state goes one stage on.
        source: Where the numbers come from, to be shown to people.
    """

    layers: int
    tied: bool
    embedding: StageCost
    layer: StageCost
    head: StageCost
    transfer: Linear
    source: str

    def cut(self, typical: Counts, *, stages: int) -> tuple[range, ...]:
        """The layers of each stage, so that the slowest takes as little time as can be.

        Args:
            typical: A microbatch like most: how long its samples are weighs attention against the
                rest, its labelled rows weigh the head.
            stages: How many.

        Raises:
            PlanError: More stages than layers, or fewer than one.
        """
        return cut_layers(
            [self.layer.seconds(typical)] * self.layers,
            stages,
            first=self.embedding.seconds(typical),
            last=self.head.seconds(typical),
        )

    def model(self, cut: Sequence[range]) -> CostModel:
        """The model of the base cut into stages.

        Args:
            cut: The layers of each stage, such as of :meth:`cut`.

        Raises:
            PlanError: ``cut`` is not all layers in order, at least one a stage.
        """
        self._check(cut)
        stages = [_layers(self.layer, len(layers)) for layers in cut]
        stages[0] = _with(stages[0], self.embedding)
        head = self.head
        if len(cut) == 1 and self.tied:
            head = replace(head, static_bytes=0.0)
        stages[-1] = _with(stages[-1], head)
        return CostModel(tuple(stages), transfer=self.transfer, source=self.source)

    def _check(self, cut: Sequence[range]) -> None:
        bounds = [0, *(layers.stop for layers in cut)]
        expected = [range(start, stop) for start, stop in pairwise(bounds)]
        if list(cut) != expected or bounds[-1] != self.layers or not all(cut):
            shown = ", ".join(f"{layers.start}-{layers.stop}" for layers in cut)
            raise PlanError(
                f"the cut [{shown}] is not the base's {self.layers} layers; allowed: all layers, "
                "in order, at least one a stage."
            )


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
