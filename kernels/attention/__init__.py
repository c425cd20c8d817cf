"""Causal attention of each sample of a packed microbatch over itself."""

from lorafusion.kernels.attention.op import packed_attention
from lorafusion.kernels.attention.rules import AttentionRules

__all__ = ["AttentionRules", "packed_attention"]
