"""grad_down: dS and dB in one pass over dY."""

from lorafusion.kernels.grad_down.op import grad_down

__all__ = ["grad_down"]
