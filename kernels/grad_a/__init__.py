"""grad_a: dA of all jobs, the dropout mask made again."""

from lorafusion.kernels.grad_a.op import grad_a

__all__ = ["grad_a"]
