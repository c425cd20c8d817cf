"""Operations that training needs at least, and MFU, the share of a device's peak that they take.

A multiply and an add are two operations. The base is frozen: a linear's forward takes 2·in·out a
token, its backward as much for the gradient of the input, and none for that of the weight. So:

- linears of the layers: 4·N a token, N their weights;
- head: 4·h·V a labelled row, h columns and V words (the loss is taken at labelled rows only);
- causal attention: 2·2·q·n²/2 a layer and sample of n tokens, q the columns of all queries, and
  2.5 times that backward (of five products one is the forward's again, as FlashAttention does it);
- LoRA: 6·r·(in + out) a token and adapted linear: forward, and both gradients backward.

An eval has the forward alone: 2·N, 2·h·V, one attention, 2·r·(in + out). Recomputed forwards do not
count. It is assumed that the first layer is adapted (below the first adapted one there is no
backward) and that a job's LoRA is spread evenly over the layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorafusion.planner.plan import Place

__all__ = ["FORMULA", "Shape", "Work", "stage_work"]

FORMULA = (
    "MFU = operations / (seconds x peak x stages). The base is frozen, so a token takes 4·N in the "
    "layers' linears (2·N forward, 2·N backward, N their weights); a labelled row takes 4·h·V in "
    "the head; a sample of n tokens takes 2·2·q·n²/2·(1 + 2.5) a layer in causal attention; LoRA "
    "takes 6·r·(in + out) a token and adapted linear. Evals count with their forwards. "
    "Recomputation does not count. Assumed: the first layer is adapted."
)
BACKWARD_ATTENTION = 2.5


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a base and its cut the operations depend on.

    Attributes:
        hidden: Columns of the hidden state, h.
        vocab: Rows of the head, V.
        query: Columns of the queries of all heads, q.
        layers: Of each stage.
        layer_parameters: Weights in the linears of one layer.
        token_flops: Of each job, 6·r·(in + out) over its linears.
    """

    hidden: int
    vocab: int
    query: int
    layers: tuple[int, ...]
    layer_parameters: int
    token_flops: Mapping[str, float]

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Shape | None:
        """From ``trace/run.json``; None where the base is of a kind that it does not know."""
        shape = facts.get("shape")
        if not shape:
            return None
        cut = facts.get("layers") or [[0, shape["layers"]]]
        return cls(
            hidden=int(shape["hidden"]),
            vocab=int(shape["vocab"]),
            query=int(shape["query"]),
            layers=tuple(int(stop) - int(start) for start, stop in cut),
            layer_parameters=int(shape["layer_parameters"]),
            token_flops={str(j["name"]): float(j["token_flops"]) for j in facts.get("jobs", ())},
        )


@dataclass(frozen=True, slots=True)
class Work:
    """Operations by kind."""

    linears: float = 0.0
    head: float = 0.0
    attention: float = 0.0
    lora: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.linears + self.head + self.attention + self.lora

    def __add__(self, other: Work) -> Work:
        return Work(
            self.linears + other.linears,
            self.head + other.head,
            self.attention + other.attention,
            self.lora + other.lora,
        )


def stage_work(shape: Shape, places: Sequence[Place]) -> tuple[Work, ...]:
    """Operations of these places on each stage."""
    whole = Work()
    for place in places:
        whole = whole + _place_work(shape, place)
    layers, last = sum(shape.layers), len(shape.layers) - 1
    return tuple(
        Work(
            whole.linears * share,
            whole.head if stage == last else 0.0,
            whole.attention * share,
            whole.lora * share,
        )
        for stage, share in enumerate(count / layers for count in shape.layers)
    )


def _place_work(shape: Shape, place: Place) -> Work:
    """On all stages together."""
    trains, layers = place.kind == "train", sum(shape.layers)
    squares = sum(n * n for segment in place.segments for n in segment.lengths)
    labelled = sum(sum(segment.labelled) for segment in place.segments)
    lora = sum(sum(s.lengths) * shape.token_flops.get(s.job, 0.0) for s in place.segments)
    forward = 2 * shape.query * squares * layers
    return Work(
        linears=(4 if trains else 2) * shape.layer_parameters * layers * place.tokens,
        head=(4 if trains else 2) * shape.hidden * shape.vocab * labelled,
        attention=forward * (1 + BACKWARD_ATTENTION) if trains else forward,
        lora=lora if trains else lora / 3,
    )
