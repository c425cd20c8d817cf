"""What a base's parts cost, and the cost model of any cut of them into stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from lorafusion.errors import PlanError
from lorafusion.planner import fields
from lorafusion.planner.cost import (
    CostModel,
    Counts,
    Linear,
    StageCost,
    read_linear,
    read_stage,
)
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

    def recomputed(self, row_bytes: float) -> PartCosts:
        """The same where each layer's forward is repeated in the backward.

        Args:
            row_bytes: Of a token's hidden state, which is all that a layer then holds.
        """
        layer = self.layer
        return replace(
            self,
            layer=replace(
                layer,
                backward=layer.backward + layer.forward,
                activation=Linear(token=row_bytes),
                working=layer.working + layer.activation,
            ),
            source=f"{self.source}, with recomputation predicted from it",
        )

    @classmethod
    def from_fields(cls, value: object, where: str) -> PartCosts:
        """Read what ``dataclasses.asdict`` and JSON made of it; ``where`` is named in errors.

        Raises:
            PlanError: ``value`` is something else; says which field.
        """
        parts = ("embedding", "layer", "head")
        found = fields.mapping(value, where, ("layers", "tied", *parts, "transfer", "source"))
        if type(found["tied"]) is not bool:
            raise fields.wrong(f"{where}.tied", found["tied"], "true or false")
        costs = cls(
            layers=fields.integer(found["layers"], f"{where}.layers", least=1),
            tied=found["tied"],
            **{name: read_stage(found[name], f"{where}.{name}") for name in parts},
            transfer=read_linear(found["transfer"], f"{where}.transfer"),
            source=fields.text(found["source"], f"{where}.source"),
        )
        costs.model([range(costs.layers)])  # refuses numbers that are not finite, or below 0
        return costs

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
