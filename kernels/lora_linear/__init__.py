"""A linear of the base with the adapters of many jobs: ``Y = X Wᵀ + b + s · (D(X) Aᵀ) Bᵀ``."""

from lorafusion.kernels.lora_linear.op import lora_linear

__all__ = ["lora_linear"]
