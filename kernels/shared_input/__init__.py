"""Linears that are given the same tensor, such as q, k and v: its read and its gradient shared."""

from lorafusion.kernels.shared_input.op import shared_lora_linear

__all__ = ["shared_lora_linear"]
