"""Which modules are RMSNorms, and of which form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lorafusion.kernels.rms_norm import NormForm, reference, rms_norm
from lorafusion.models.fused_checks import equal, takes_one, tried

# Of rows: a small one shows eps.
_MAGNITUDES = (0.0, 1e-3, 0.3, 1.0, 30.0)


def find_norm(module: Any) -> Callable[..., Any] | None:
    """The forward that replaces an RMSNorm's own; None if ``module`` is none, or not in this dtype.

    In float64 transformers' norms round to float32 inside, and the op does not: none is replaced.
    """
    form = _form_of(module)
    if form is None:
        return None
    theirs = type(module).forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != 1 or args[0].dtype != self.weight.dtype:
            return theirs(self, *args, **kwargs)
        return rms_norm(args[0], self.weight, form)

    return forward


def _form_of(module: Any) -> NormForm | None:
    weight = getattr(module, "weight", None)
    names = ("variance_epsilon", "eps")
    eps = next((getattr(module, name) for name in names if hasattr(module, name)), None)
    if not isinstance(weight, nn.Parameter) or weight.ndim != 1 or not isinstance(eps, float):
        return None
    if len(list(module.parameters())) != 1 or not takes_one(type(module).forward):
        return None
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(len(_MAGNITUDES), len(weight), generator=generator)
    rows[-1, 1:] = 0  # the largest result that there can be: it shows a limit
    x = (rows * torch.tensor(_MAGNITUDES)[:, None]).to(weight.device, weight.dtype)
    found = tried(type(module).forward, module, x)
    forms = (NormForm(eps, rounds_first=True), NormForm(eps), NormForm(eps, plus_one=True))
    fitting = (form for form in forms if equal(found, reference.rms_norm(x, weight, form)))
    return next(fitting, None)
