"""LoRA: ``Y = X Wᵀ + s · (D(X) Aᵀ) Bᵀ`` with s = alpha / r, or alpha / sqrt(r) with rsLoRA.

Sources: Hu et al. 2021, arXiv:2106.09685; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732.
A is [r, in] and B is [out, r], as PEFT stores them.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from lorafusion.adapters.registry import AdapterConfig


class LoraConfig(AdapterConfig):
    """Settings of one LoRA adapter, with PEFT's names."""

    type: Literal["lora"] = "lora"
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
