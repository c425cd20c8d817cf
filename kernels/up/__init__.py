"""up: the base's GEMM with every job's product with Bᵀ inside."""

from lorafusion.kernels.up.op import up

__all__ = ["up"]
