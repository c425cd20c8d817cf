"""grad_input: the base's backward GEMM with every job's product with A and mask inside."""

from lorafusion.kernels.grad_input.op import grad_input

__all__ = ["grad_input"]
