"""The CPU's rms_norm: the compiled loops."""

from __future__ import annotations

import torch

from lorafusion.kernels.native import elementwise
from lorafusion.kernels.native.elementwise import takes
from lorafusion.kernels.rms_norm.form import NormForm

__all__ = ["rms_norm", "rms_norm_backward", "takes"]


def rms_norm(
    x_RD: torch.Tensor, weight_D: torch.Tensor, form: NormForm
) -> tuple[torch.Tensor, torch.Tensor]:
    """Y, and each row's 1 / sqrt(..)."""
    y_RD, scale_R = torch.empty_like(x_RD), x_RD.new_empty(len(x_RD), dtype=torch.float32)
    elementwise.rms_norm(form, x_RD, weight_D, y_RD, scale_R)
    return y_RD, scale_R


def rms_norm_backward(
    dy_RD: torch.Tensor,
    x_RD: torch.Tensor,
    weight_D: torch.Tensor,
    scale_R: torch.Tensor,
    form: NormForm,
) -> torch.Tensor:
    """dX, of dY and what the forward took and gave."""
    dx_RD = torch.empty_like(x_RD)
    elementwise.rms_norm_backward(form, x_RD, weight_D, scale_R, dy_RD, dx_RD)
    return dx_RD
