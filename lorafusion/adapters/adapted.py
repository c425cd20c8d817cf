"""A linear of the base that also runs the bound microbatch's adapters.

Hugging Face calls linears that are given the same tensor (q, k, v; gate, up) one after another. The
first of them runs all, and leaves the outputs of the others in the binding's scratch. These take
theirs only if they are given that very tensor, unchanged; else they run alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from lorafusion.kernels.binding import bound_layout, bound_scratch
from lorafusion.kernels.layout import AdapterLayout, ModuleAdapters, Projection
from lorafusion.kernels.lora_linear import lora_linear
from lorafusion.kernels.shared_input import shared_lora_linear


def weight_NK(linear: Any) -> torch.Tensor:
    """The weight [out, in] of an ``nn.Linear``, or of a ``Conv1D``, which stores [in, out]."""
    return linear.weight if isinstance(linear, nn.Linear) else linear.weight.T


class _Left(NamedTuple):
    """An output that waits for its linear to be called."""

    x: torch.Tensor
    version: int
    y: torch.Tensor

    def fits(self, x: torch.Tensor) -> bool:
        return x is self.x and _version(x) == self.version


class AdaptedLinear(nn.Module):
    """A linear of the base, with its place among those of the same input."""

    def __init__(self, base: Any, name: str) -> None:
        """``base`` is an ``nn.Linear`` or a ``Conv1D``, ``name`` its full name in the base."""
        super().__init__()
        self.base = base
        self.name = name
        self.sharing: Sequence[AdaptedLinear] = ()
        """All that are given the same tensor, this one too, in the order of their calls."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]; the base alone outside of a packed forward."""
        layout = bound_layout()
        adapters = layout.modules.get(self.name) if layout is not None else None
        if layout is None or adapters is None:
            return self.base(x)
        left = bound_scratch().pop(self.name, None)
        if left is not None and left.fits(x):
            return left.y
        # A linear without an adapter in this microbatch stays apart: what a job's sums are added in
        # must not depend on which adapters others have.
        here = [one for one in self.sharing if one.name in layout.modules]
        if left is None and here and here[0] is self and len(here) > 1:
            return _run_all(here, x, layout)
        return lora_linear(x, weight_NK(self.base), self.base.bias, layout, adapters)

    def projection(self, adapters: ModuleAdapters) -> Projection:
        """What the kernels need of it where others run with it."""
        return Projection(weight_NK(self.base), self.base.bias, adapters)


def _run_all(here: Sequence[AdaptedLinear], x: torch.Tensor, layout: AdapterLayout) -> torch.Tensor:
    first, *others = shared_lora_linear(
        x, [one.projection(layout.modules[one.name]) for one in here], layout
    )
    scratch = bound_scratch()
    for one, y in zip(here[1:], others, strict=True):
        scratch[one.name] = _Left(x, _version(x), y)
    return first


def _version(x: torch.Tensor) -> int:
    """Changes when it is written to."""
    return 0 if x.is_inference() else x._version
