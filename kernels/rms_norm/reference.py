"""The meaning of :func:`lorafusion.kernels.rms_norm.rms_norm`, in plain torch.

The operations are those of transformers' classes, in their order: up to float32 the results are
theirs, bit for bit.
"""

from __future__ import annotations

import torch

from lorafusion.kernels.rms_norm.form import NormForm


def rms_norm(x: torch.Tensor, weight_D: torch.Tensor, form: NormForm) -> torch.Tensor:
    """See the op. Differentiable in both tensors."""
    wide = torch.promote_types(x.dtype, torch.float32)
    rows = x.to(wide)
    rows = rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + form.eps)
    if form.rounds_first:
        rows = rows.to(x.dtype)
    factor = weight_D.to(rows.dtype)
    return (rows * (1.0 + factor if form.plus_one else factor)).to(x.dtype)
