"""The head of a causal LM: from the final hidden state to logits, by the rules of its config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Head(NamedTuple):
    """``c · tanh(s · (hidden · Wᵀ + b) / c)``; without a cap c, ``s · (hidden · Wᵀ + b)``."""

    weight_VD: torch.Tensor
    """[V, D], frozen. Where embeddings are tied, it is the embedding's own."""
    bias_V: torch.Tensor | None = None
    """[V] or None, frozen."""
    scale: float = 1.0
    """The factor s: Cohere's ``logit_scale``, one over Granite's ``logits_scaling``."""
    softcap: float | None = None
    """The cap c, Gemma's ``final_logit_softcapping``."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> Head | None:
        """The head of ``model``, None where it has no linear one."""
        linear = model.get_output_embeddings()
        if not isinstance(linear, nn.Linear):
            return None
        config: Any = model.config
        scale = getattr(config, "logit_scale", None) or 1.0
        scale /= getattr(config, "logits_scaling", None) or 1.0
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(linear.weight, linear.bias, scale, softcap)

    def logits(self, hidden_LD: torch.Tensor) -> torch.Tensor:
        """[L, V] in float32, in float64 for a float64 ``hidden_LD`` [L, D]."""
        logits = self.linear(hidden_LD)
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

    def linear(self, hidden_LD: torch.Tensor) -> torch.Tensor:
        """The logits before the cap."""
        dtype = torch.promote_types(hidden_LD.dtype, torch.float32)
        logits = F.linear(hidden_LD, self.weight_VD, self.bias_V).to(dtype)
        return logits if self.scale == 1.0 else logits * self.scale
