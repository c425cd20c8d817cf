"""gated_product: an MLP's activation of one linear times another."""

from lorafusion.kernels.gated_product.op import gated_halves, gated_product
from lorafusion.kernels.gated_product.reference import ACTIVATIONS

__all__ = ["ACTIVATIONS", "gated_halves", "gated_product"]
