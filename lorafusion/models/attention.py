"""Causal attention of each sample over itself, for a packed microbatch.

Registered with transformers under :data:`NAME`. A name that has an attention function but no mask
function makes transformers build no mask at all, so no [tokens, tokens] tensor ever exists: the
bound layout says where samples begin, and each is its own call.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lorafusion.errors import ModelError
from lorafusion.kernels.attention import cpu
from lorafusion.kernels.binding import bound_layout

NAME = "lorafusion_packed"
# What transformers passes along that does not change a causal attention within the sample.
_HARMLESS = {"position_ids", "use_cache", "output_attentions"}
# Query rows at once where there is a mask or an explicit softmax. A window adds its own length to
# the keys of each block, so shorter blocks read more; longer ones mask out more.
BLOCK_ROWS = 256


class AttentionRules(NamedTuple):
    """What a layer asks for, beside causal attention within the sample."""

    scaling: float | None = None
    """Factor on query · key, by default head_dim ** -0.5."""
    window: int | None = None
    """A row sees itself and the ``window - 1`` rows before it."""
    softcap: float | None = None
    """Scores z become c · tanh(z / c)."""
    sinks: torch.Tensor | None = None
    """[heads]: one more score per head in the softmax's sum, which has no value."""

    def scale_of(self, query: torch.Tensor) -> float:
        """The factor on query · key, for ``query`` [..., head_dim]."""
        return query.shape[-1] ** -0.5 if self.scaling is None else self.scaling

    @property
    def explicit(self) -> bool:
        """Whether torch's own attention cannot do it, between product and softmax or in the sum."""
        return self.softcap is not None or self.sinks is not None


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
        value: As ``key``.
        attention_mask: None: the layout takes its place.
        scaling: Factor on query · key, by default head_dim ** -0.5.
        dropout: 0: the base runs in eval mode.
        options: Other keywords of transformers: ``sliding_window``, ``softcap`` and ``s_aux``
            (sinks) are done; another that would change the result is refused.

    Returns:
        [1, T, heads, head_dim] and no attention weights.

    Raises:
        ModelError: The layer asks for something that is not done here, or brings a mask.
    """
    rules = _read_rules(module, scaling, dropout, options)
    layout = bound_layout()
    assert layout is not None, "packed attention ran outside of a stage's forward"
    if attention_mask is not None:
        raise ModelError(
            f"{type(module).__name__} brings an attention mask of its own; allowed: models whose "
            "masks are left to the attention function."
        )
    if not rules.explicit and cpu.runs_on(query, key, value):
        asked = cpu.Rules(layout.sample_starts, rules.scale_of(query), rules.window)
        return cpu.packed_attention(query[0], key[0], value[0], asked)[None], None
    # split, not slices: the backward of a slice fills a zero tensor of the whole microbatch.
    lengths = [stop - start for start, stop in pairwise(layout.sample_starts)]
    q, k, v = (tensor.split(lengths, dim=2) for tensor in (query, key, value))
    pieces = [_one_sample(*sample, rules) for sample in zip(q, k, v, strict=True)]
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), None


def _read_rules(
    module: nn.Module, scaling: float | None, dropout: float, options: Mapping[str, Any]
) -> AttentionRules:
    asked = {k: v for k, v in options.items() if v is not None and k not in _HARMLESS}
    causal = asked.pop("is_causal", getattr(module, "is_causal", True))
    rules = AttentionRules(
        scaling,
        asked.pop("sliding_window", None),
        asked.pop("softcap", None),
        asked.pop("s_aux", None),
    )
    wrong = [*sorted(asked), *(["dropout"] if dropout else []), *([] if causal else ["is_causal"])]
    if wrong:
        raise ModelError(
            f"{type(module).__name__} asks for attention with {', '.join(wrong)}, which packed "
            "attention does not do; allowed: causal attention, with or without scaling, "
            "sliding_window, softcap and s_aux."
        )
    return rules


def _one_sample(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rules: AttentionRules
) -> torch.Tensor:
    dtype = query.dtype
    if dtype == torch.bfloat16 and (rules.explicit or query.device.type == "cpu"):
        # SDPA's bfloat16 backward on a CPU took 1.4 ms for 40 tokens where float32 took .4; and a
        # tanh and softmax written out would keep three digits.
        query, key, value = query.float(), key.float(), value.float()
    rows = query.shape[2]
    if rules.explicit or (rules.window is not None and rows > rules.window):
        out = _in_blocks(query, key, value, rules)
    else:
        out = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=rules.scaling, enable_gqa=True
        )
    return out.to(dtype)


def _in_blocks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rules: AttentionRules
) -> torch.Tensor:
    """A block of queries at a time, each with the keys that it sees any of."""
    rows = query.shape[2]
    window = rows if rules.window is None else rules.window
    attend = _explicit_again if rules.explicit else _masked
    pieces: list[torch.Tensor] = []
    for start, q in zip(range(0, rows, BLOCK_ROWS), query.split(BLOCK_ROWS, dim=2), strict=True):
        stop, first = start + q.shape[2], max(0, start - window + 1)
        row = torch.arange(start, stop, device=q.device)[:, None]
        column = torch.arange(first, stop, device=q.device)
        seen = (column <= row) & (column > row - window)
        k, v = key[:, :, first:stop], value[:, :, first:stop]
        pieces.append(attend(q, k, v, seen, rules))
    return torch.cat(pieces, dim=2)


def _masked(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seen: torch.Tensor,
    rules: AttentionRules,
) -> torch.Tensor:
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, scale=rules.scaling, enable_gqa=True
    )


def _explicit_again(*block: Any) -> torch.Tensor:
    # Computed a second time in the backward: else the scores of all layers are kept until then.
    return checkpoint(_explicit, *block, use_reentrant=False, preserve_rng_state=False)


def _explicit(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seen: torch.Tensor,
    rules: AttentionRules,
) -> torch.Tensor:
    """Written out, for what torch's own attention does not do between product and softmax."""
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = (tensor.repeat_interleave(shared, dim=1) for tensor in (key, value))
    scores = query @ key.mT * rules.scale_of(query)
    if rules.softcap is not None:
        scores = rules.softcap * torch.tanh(scores / rules.softcap)
    scores = scores.masked_fill(~seen, -torch.inf)
    if rules.sinks is None:
        return scores.softmax(dim=-1) @ value
    sinks = rules.sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
    return torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1] @ value
