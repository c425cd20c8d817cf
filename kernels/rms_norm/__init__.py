"""rms_norm: rows over the root of their mean square, times a frozen weight."""

from lorafusion.kernels.rms_norm.form import NormForm
from lorafusion.kernels.rms_norm.op import rms_norm

__all__ = ["NormForm", "rms_norm"]
