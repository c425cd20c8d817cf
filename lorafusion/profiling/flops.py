"""The operations of a base's forward, counted by DeepSpeed and by the formula that is planned with.

DeepSpeed's flops profiler hooks modules and replaces functions of ``torch.nn.functional`` while a
model runs. It does not see all of our own stage: packed attention is one compiled op on a CPU, and
the head's product lies in the loss, outside of any module. So the plain Hugging Face model runs
instead, on torch's meta device, sample by sample with the same lengths: nothing is computed and no
weight is read. Its attention is torch's own, without a mask.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lorafusion.errors import ProfileError
from lorafusion.planner.shape import ModelShape

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Flops", "FlopsComparison", "compare_flops"]

_ATTENTION = "lorafusion_counted"


@dataclass(frozen=True, slots=True)
class Flops:
    """Operations of one forward of the base; a multiply and an add are two.

    Attributes:
        linears: Of the layers' linears.
        attention: Scores, and their product with the values.
        head: Logits at the labelled rows.
        other: What else was counted, such as activations.
    """

    linears: float
    attention: float
    head: float
    other: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.linears + self.attention + self.head + self.other


@dataclass(frozen=True, slots=True)
class FlopsComparison:
    """What DeepSpeed has counted, and what the formula says.

    Attributes:
        lengths: Tokens of each sample.
        labelled: Of each sample, the rows at which the head is computed.
        counted: By DeepSpeed. Its attention has every score, those above the diagonal too.
        formula: 2 · weights of the layers' linears a token, 2 · hidden · vocabulary a labelled
            row, and 4 · query columns for each score on or below the diagonal.
        whole_attention: The formula's attention with every score, as DeepSpeed counts it.
    """

    lengths: tuple[int, ...]
    labelled: tuple[int, ...]
    counted: Flops
    formula: Flops
    whole_attention: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **asdict(self),
            "counted": {**asdict(self.counted), "total": self.counted.total},
            "formula": {**asdict(self.formula), "total": self.formula.total},
        }


def compare_flops(
    base_model: str, lengths: Sequence[int], labelled: Sequence[int]
) -> FlopsComparison:
    """Count the forward of one microbatch.

    Args:
        base_model: A folder or a hub id.
        lengths: Tokens of each sample, from 1.
        labelled: Of each sample, the rows with a target, from 1 to all.

    Raises:
        ProfileError: DeepSpeed is missing, the numbers do not fit, or the model does not run
            without weights.
        ModelError: There is no such base.
        PlanError: The formula does not know its sizes.
    """
    _check(lengths, labelled)
    profiler_class = _profiler_class()
    from lorafusion.models.load import check_base, meta_model

    config = check_base(base_model).get_text_config()
    shape = ModelShape.from_config(config.to_dict(), "float32")
    model: Any = meta_model(base_model).eval()
    counted = _count(model, profiler_class, list(zip(lengths, labelled, strict=True)))
    scores = sum(length * (length + 1) / 2 for length in lengths)
    every = sum(length**2 for length in lengths)
    # A score is a product of a head's columns, and so is its share of the values.
    columns = 4 * shape.layers * shape.query
    formula = Flops(
        linears=2.0 * shape.layers * shape.layer_parameters * sum(lengths),
        attention=columns * scores,
        head=2.0 * shape.hidden * shape.vocab * sum(labelled),
    )
    return FlopsComparison(tuple(lengths), tuple(labelled), counted, formula, columns * every)


def _check(lengths: Sequence[int], labelled: Sequence[int]) -> None:
    if len(lengths) != len(labelled) or not lengths:
        raise ProfileError(
            f"flops: {len(lengths)} lengths and {len(labelled)} numbers of labelled rows; allowed: "
            "one of each for every sample, and at least one sample."
        )
    for length, rows in zip(lengths, labelled, strict=True):
        if not 1 <= rows <= length:
            raise ProfileError(
                f"flops: a sample of {length} tokens has {rows} labelled rows; allowed: 1 to "
                "its length."
            )


def _profiler_class() -> Any:
    try:
        with redirect_stdout(sys.stderr):  # its loggers write where they are made
            from deepspeed.profiling.flops_profiler import FlopsProfiler  # pyright: ignore
    except ImportError as error:
        raise ProfileError(
            f"DeepSpeed's flops profiler cannot be imported ({error}). Install it, without "
            "compiling anything, with `DS_BUILD_OPS=0 pip install 'lorafusion[deepspeed]'`, or "
            "leave --flops out."
        ) from error
    return FlopsProfiler  # pyright: ignore


def _count(model: Any, profiler_class: Any, samples: Sequence[tuple[int, int]]) -> Flops:
    import torch
    from transformers import AttentionInterface

    AttentionInterface.register(_ATTENTION, _attention)
    model.set_attn_implementation(_ATTENTION)
    profiler = profiler_class(model)
    with redirect_stdout(sys.stderr):
        profiler.start_profile()
        try:
            with torch.no_grad():
                for length, rows in samples:
                    tokens = torch.zeros(1, length, dtype=torch.long, device="meta")
                    model(input_ids=tokens, use_cache=False, logits_to_keep=rows)
            return _by_part(model, float(profiler.get_total_flops()))
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            raise ProfileError(
                f"{type(model).__name__} does not run on torch's meta device, where flops are "
                f"counted ({error}). Leave --flops out for this base."
            ) from error
        finally:
            profiler.end_profile()


def _by_part(model: Any, total: float) -> Flops:
    """Split by what the profiler has noted at each module, of its own functions alone."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head: nn.Module = model.get_output_embeddings()
    modules: list[nn.Module] = list(model.modules())
    linears = [m for m in modules if isinstance(m, nn.Linear | Conv1D) and m is not head]
    # Attention is counted where it is called: in a module that holds the projections.
    holders = [m for m in modules if hasattr(m, "is_causal") and any(m.children())]
    attention = sum(_own(module) for module in holders)
    parts = Flops(
        linears=sum(_own(module) for module in linears),
        attention=attention,
        head=_own(head),
    )
    return Flops(parts.linears, parts.attention, parts.head, total - parts.total)


def _own(module: nn.Module) -> float:
    return float(getattr(module, "__flops__", 0))


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **_options: Any,
) -> tuple[torch.Tensor, None]:
    """Torch's, by name: a name that transformers has no mask function for gets no mask."""
    from torch.nn import functional

    del module, attention_mask
    out = functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=True
    )
    return out.transpose(1, 2).contiguous(), None
