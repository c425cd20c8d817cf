"""LoRA: ``Y = X Wᵀ + s · (D(X) Aᵀ) Bᵀ`` with s = alpha / r, or alpha / sqrt(r) with rsLoRA.

Sources: Hu et al. 2021, arXiv:2106.09685; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732.
A is [r, in] and B is [out, r], as PEFT stores them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from lorafusion.adapters.registry import AdapterConfig, register_method

if TYPE_CHECKING:
    import torch

    from lorafusion.kernels.layout import FusedForm


class LoraConfig(AdapterConfig, frozen=True):
    """Settings of one LoRA adapter, with PEFT's names."""

    type: Literal["lora"] = "lora"
    """The adapter method."""
    r: Annotated[int, Field(ge=1)] = 8
    """Rank of the two factors."""
    lora_alpha: Annotated[float, Field(gt=0)] = 16
    """The product is scaled by alpha / r (alpha / sqrt(r) with ``use_rslora``)."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Chance that an input element of the adapter is dropped."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """As PEFT reads it: ``all-linear``, one regex (matched whole), or a list of name suffixes."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) instead of alpha / r."""

    @property
    def scale(self) -> float:
        """The factor s of the adapter's product."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


class LoraModule:
    """A and B of one job on one linear, float32 (float64 on a float64 base)."""

    def __init__(self, config: LoraConfig, weight: torch.Tensor, *, name: str, seed: int) -> None:
        """B is zero, so the base's output is unchanged at first; A is uniform as in PEFT.

        A depends on (seed, module name) alone: torch's Kaiming-uniform with a = sqrt(5) is
        U(-1/sqrt(in), 1/sqrt(in)). It is drawn in float32 for every dtype of the base.
        """
        import torch

        from lorafusion.kernels.dropout import threshold
        from lorafusion.kernels.hashing import hash64, module_key

        rows, columns = weight.shape
        dtype = torch.promote_types(weight.dtype, torch.float32)
        generator = torch.Generator().manual_seed(hash64(seed, module_key(name)) >> 1)
        bound = 1 / math.sqrt(columns)
        a = torch.empty(config.r, columns).uniform_(-bound, bound, generator=generator)
        self.lora_A = a.to(weight.device, dtype).requires_grad_()
        self.lora_B = weight.new_zeros(rows, config.r, dtype=dtype).requires_grad_()
        self._scale = config.scale
        self._dropout = threshold(config.lora_dropout)

    def parameters(self) -> dict[str, torch.Tensor]:
        """The two factors, by PEFT's names."""
        return {"lora_A": self.lora_A, "lora_B": self.lora_B}

    def fused_form(self) -> FusedForm:
        """The factors themselves: LoRA has nothing to compute first."""
        from lorafusion.kernels.layout import FusedForm

        return FusedForm(self.lora_A, self.lora_B, self._scale, self._dropout)


register_method("lora", LoraConfig, LoraModule)
