"""transformers' attention interface: a layer's keywords and the bound layout become the op's rules.

Registered with transformers under :data:`NAME`. A name that has an attention function but no mask
function makes transformers build no mask at all, so no [tokens, tokens] tensor ever exists: the
bound layout says where samples begin, and each is its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lorafusion.errors import ModelError
from lorafusion.kernels import attention
from lorafusion.kernels.attention import AttentionRules
from lorafusion.kernels.binding import bound_layout

NAME = "lorafusion_packed"
# What transformers passes along that does not change a causal attention within the sample.
_HARMLESS = {"position_ids", "use_cache", "output_attentions"}


def register() -> None:
    """Let transformers' models choose packed attention by ``NAME``. Again does nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)


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
        module: The attention layer; only asked whether it is causal.
        query: [1, heads, T, head_dim].
        key: [1, kv_heads, T, head_dim]; ``heads`` is a multiple of ``kv_heads``.
        value: [1, kv_heads, T, value_dim].
        attention_mask: None: the layout takes its place.
        scaling: Factor on query · key, by default head_dim ** -0.5.
        dropout: 0: the base runs in eval mode.
        options: Other keywords of transformers: ``sliding_window``, ``softcap`` and ``s_aux``
            (sinks) are done; another that would change the result is refused.

    Returns:
        [1, T, heads, value_dim] and no attention weights.

    Raises:
        ModelError: The layer asks for something that is not done here, or brings a mask.
    """
    layout = bound_layout()
    assert layout is not None, "packed attention ran outside of a stage's forward"
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    plain = AttentionRules(layout.sample_starts, scale)
    rules = _read_rules(module, plain, dropout, options)
    if attention_mask is not None:
        raise ModelError(
            f"{type(module).__name__} brings an attention mask of its own; allowed: models whose "
            "masks are left to the attention function."
        )
    return attention.packed_attention(query[0], key[0], value[0], rules)[None], None


def _read_rules(
    module: nn.Module, plain: AttentionRules, dropout: float, options: Mapping[str, Any]
) -> AttentionRules:
    asked = {k: v for k, v in options.items() if v is not None and k not in _HARMLESS}
    causal = asked.pop("is_causal", getattr(module, "is_causal", True))
    rules = plain._replace(
        window=asked.pop("sliding_window", None),
        softcap=asked.pop("softcap", None),
        sinks=asked.pop("s_aux", None),
    )
    wrong = [*sorted(asked), *(["dropout"] if dropout else []), *([] if causal else ["is_causal"])]
    if wrong:
        raise ModelError(
            f"{type(module).__name__} asks for attention with {', '.join(wrong)}, which packed "
            "attention does not do; allowed: causal attention, with or without scaling, "
            "sliding_window, softcap and s_aux."
        )
    return rules
