"""The head of a causal LM of transformers, by the rules of its config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from lorafusion.kernels.cross_entropy import Head

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def head_of(model: PreTrainedModel) -> Head | None:
    """The head of ``model``, None where it has no linear one."""
    linear = model.get_output_embeddings()
    if not isinstance(linear, nn.Linear):
        return None
    config: Any = model.config
    scale = getattr(config, "logit_scale", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(linear.weight, linear.bias, scale, softcap)
