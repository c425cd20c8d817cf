"""The head of a causal LM: from the final hidden state to logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from lorafusion.kernels.checks import accumulation_dtype


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

    def logits(self, hidden_LD: torch.Tensor) -> torch.Tensor:
        """[L, V] in float32, in float64 for a float64 ``hidden_LD`` [L, D]."""
        logits = self.linear(hidden_LD)
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

    def linear(self, hidden_LD: torch.Tensor) -> torch.Tensor:
        """The logits before the cap."""
        bias_V = None if self.bias_V is None else self.bias_V.detach()
        logits = F.linear(hidden_LD, self.weight_VD.detach(), bias_V)
        logits = logits.to(accumulation_dtype(hidden_LD.dtype))
        return logits if self.scale == 1.0 else logits * self.scale
