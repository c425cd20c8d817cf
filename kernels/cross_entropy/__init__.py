"""The head of a causal LM and its loss: from hidden states to cross-entropies, chunk by chunk."""

from lorafusion.kernels.cross_entropy.head import Head
from lorafusion.kernels.cross_entropy.op import cross_entropy

__all__ = ["Head", "cross_entropy"]
