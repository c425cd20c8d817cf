"""The public op: one implementation a device."""

from __future__ import annotations

import torch

from lorafusion.errors import KernelError
from lorafusion.kernels.attention.rules import AttentionRules
from lorafusion.kernels.backend import choose_backend


def packed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rules: AttentionRules
) -> torch.Tensor:
    """Causal attention within each sample; nothing passes between samples.

    ``softmax(cap(scaling · Q Kᵀ)) V`` over the rows that a row sees, with cap(z) = c · tanh(z / c)
    where there is a softcap (Gemma 2, arXiv:2408.00118), and one more score in the sum where there
    are sinks (Xiao et al. 2023, arXiv:2309.17453; learnt in gpt-oss).

    Args:
        query: [heads, T, width].
        key: [kv_heads, T, width]; ``heads`` is a multiple of ``kv_heads``.
        value: [kv_heads, T, value_width].
        rules: Where samples begin, and what the layer asks for.

    Returns:
        [T, heads, value_width], contiguous, in the dtype of ``query``. Sinks get no gradient.

    Raises:
        KernelError: An argument does not fit the others, or ``LORAFUSION_BACKEND`` names a backend
            that does not exist.
    """
    _check(query, key, value, rules)
    if choose_backend(query.device) == "reference":
        from lorafusion.kernels.attention import reference as chosen
    elif query.device.type == "cpu" or choose_backend(query.device) == "cpu":
        from lorafusion.kernels.attention import cpu as chosen
    else:
        from lorafusion.kernels.attention import gpu as chosen
    return chosen.packed_attention(query, key, value, rules)


def _check(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rules: AttentionRules
) -> None:
    heads, rows, width = query.shape
    kv_heads = key.shape[0]
    if key.shape[1:] != (rows, width) or value.shape[:2] != (kv_heads, rows):
        shapes = f"{list(query.shape)}, {list(key.shape)} and {list(value.shape)}"
        _refuse("q, k and v", "shapes", shapes, "[heads, T, width], and KV heads of as many rows")
    if heads % kv_heads:
        _refuse("q", "heads", heads, f"a multiple of the {kv_heads} KV heads")
    if not query.dtype == key.dtype == value.dtype:
        _refuse("q, k and v", "dtypes", [query.dtype, key.dtype, value.dtype], "one dtype")
    if rules.starts[0] != 0 or rules.starts[-1] != rows or min(rules.lengths, default=0) < 0:
        _refuse("starts", "rows", list(rules.starts), f"0 to {rows}, in order")
    if rules.window is not None and rules.window < 1:
        _refuse("window", "length", rules.window, "1 or more rows")
    if rules.softcap is not None and not rules.softcap > 0:
        _refuse("softcap", "value", rules.softcap, "more than 0")
    if rules.sinks is not None:
        if rules.sinks.shape != (heads,):
            _refuse("sinks", "shape", list(rules.sinks.shape), f"[{heads}]")
        if rules.sinks.requires_grad:
            _refuse("sinks", "requires_grad", True, "frozen ones: they get no gradient")


def _refuse(what: str, kind: str, found: object, expected: object) -> None:
    raise KernelError(f"packed_attention: {what} has {kind} {found}; expected {expected}.")
