"""The GPU's packed attention: by the engine that :mod:`engines` chooses."""

from __future__ import annotations

import torch

from lorafusion.kernels.attention import engines, flash, flex, samples
from lorafusion.kernels.attention.engines import FLASH, FLEX, SAMPLES, VARLEN, Asked
from lorafusion.kernels.attention.rules import AttentionRules

RUN = {
    VARLEN: flash.torchs_own,
    FLASH: flash.flash_attn,
    FLEX: flex.packed_attention,
    SAMPLES: samples.packed_attention,
}


def packed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rules: AttentionRules
) -> torch.Tensor:
    """See :func:`lorafusion.kernels.attention.op.packed_attention`."""
    asked = Asked(
        query.dtype,
        query.shape[-1],
        value.shape[-1],
        rules.softcap is not None,
        rules.sinks is not None,
        torch.are_deterministic_algorithms_enabled(),
    )
    engine = engines.choose(asked, engines.machine_of(query.device))
    return RUN[engine.name](query, key, value, rules)
