"""Causal attention of each sample over itself, for a packed microbatch.

Registered with transformers under :data:`NAME`. A name that has an attention function but no mask
function makes transformers build no mask at all, so no [tokens, tokens] tensor ever exists: the
bound layout says where samples begin, and each is its own call.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lorafusion.errors import ModelError
from lorafusion.kernels.binding import bound_layout

NAME = "lorafusion_packed"
# What transformers passes along that does not change a causal, full, per-sample attention.
_HARMLESS = {"position_ids", "use_cache", "is_causal", "output_attentions"}


def packed_attention(  # noqa: PLR0913 - the signature is transformers'
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a packed microbatch.

    Args:
        module: The attention layer (unused, transformers passes it).
        query: [1, heads, T, head_dim].
        key: [1, kv_heads, T, head_dim]; ``heads`` is a multiple of ``kv_heads``.
        value: As ``key``.
        attention_mask: None: the layout takes its place.
        scaling: Factor on query · key, by default head_dim ** -0.5.
        dropout: 0: the base runs in eval mode.
        options: Other keywords of transformers; one that would change the result is refused.

    Returns:
        [1, T, heads, head_dim] and no attention weights.

    Raises:
        ModelError: The model asks for something else than full causal attention.
    """
    asked = sorted(k for k, v in options.items() if v is not None and k not in _HARMLESS)
    if asked or dropout:
        raise ModelError(
            f"{type(module).__name__} asks for attention with {', '.join(asked) or 'dropout'}, "
            "which packed attention does not do; allowed: full causal attention."
        )
    layout = bound_layout()
    assert layout is not None, "packed attention ran outside of a stage's forward"
    assert attention_mask is None
    # split, not slices: the backward of a slice fills a zero tensor of the whole microbatch.
    lengths = [stop - start for start, stop in pairwise(layout.sample_starts)]
    q, k, v = (tensor.split(lengths, dim=2) for tensor in (query, key, value))
    pieces = [_one_sample(*sample, scaling) for sample in zip(q, k, v, strict=True)]
    return torch.cat(pieces, dim=2).transpose(1, 2), None


def _one_sample(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    dtype = query.dtype
    if dtype == torch.bfloat16 and query.device.type == "cpu":
        # SDPA's bfloat16 backward on a CPU took 1.4 ms for 40 tokens where float32 took .4.
        query, key, value = query.float(), key.float(), value.float()
    out = F.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, enable_gqa=True
    )
    return out.to(dtype)
