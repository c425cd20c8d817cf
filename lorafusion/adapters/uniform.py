"""Ranks and alphas that differ per module, folded into one of each: the same function.

vLLM scales every module by the one ``lora_alpha / r`` of the config.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lorafusion.adapters.peft_format import StoredAdapter


def uniform(adapter: StoredAdapter) -> StoredAdapter:
    """The adapter with the largest rank r on every module, and alpha = r, so that the scale is 1.

    A gets rows of zeros and B columns of zeros, which add nothing to B A. Each module's own scale
    goes into its B, multiplied in float64: saving rounds once, to float32.
    """
    config = adapter.config
    if not (config.rank_pattern or config.alpha_pattern):
        return adapter
    rank = max(a.shape[0] for a, _ in adapter.modules.values())
    modules = {
        name: (_padded(a, rank, dim=0), _padded(b.double() * config.scale_of(name), rank, dim=1))
        for name, (a, b) in adapter.modules.items()
    }
    settled = {"r": rank, "lora_alpha": float(rank), "use_rslora": False}
    empty = {"rank_pattern": {}, "alpha_pattern": {}, "init_from": None}
    return adapter._replace(config=config.model_copy(update=settled | empty), modules=modules)


def _padded(factor: Tensor, rank: int, *, dim: int) -> Tensor:
    shape = list(factor.shape)
    shape[dim] = rank - shape[dim]
    return torch.cat([factor, factor.new_zeros(shape)], dim)
