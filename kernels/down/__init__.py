"""down: dropout and the product with Aᵀ in one pass over X."""

from lorafusion.kernels.down.op import down

__all__ = ["down"]
