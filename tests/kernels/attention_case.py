"""Inputs and rules that tests of packed attention share."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import torch

from lorafusion.kernels.attention import AttentionRules, reference

Run = Callable[..., torch.Tensor]
# Around the loops' blocks of 48 rows and 96 columns; of no row, and of one.
LENGTHS = (1, 47, 48, 49, 0, 97, 200, 5)

RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "window of 1": {"window": 1},
    "window of 2": {"window": 2},
    "window of 7": {"window": 7},
    "window of 48": {"window": 48},
    "window of 150": {"window": 150},
    "window longer than any": {"window": 1000},
    "softcap": {"softcap": 0.7},
    "window and softcap": {"window": 30, "softcap": 5.0},
    "sinks": {"sinks": True},
    "window and sinks": {"window": 16, "sinks": True},
    "all": {"window": 100, "softcap": 0.7, "sinks": True},
}


class Heads(NamedTuple):
    """Of a layer."""

    query: int
    kv: int
    width: int
    value_width: int


# As SmolLM2's; one KV head a head, of a width that fills no vector; one for all.
HEADS = (Heads(9, 3, 64, 64), Heads(2, 2, 20, 36), Heads(8, 1, 16, 16))


def rules_of(what: str, heads: Heads, lengths: tuple[int, ...] = LENGTHS) -> AttentionRules:
    """Rules by name, for samples of these lengths."""
    asked = dict(RULES[what])
    if asked.pop("sinks", False):
        asked["sinks"] = torch.linspace(-1, 3, heads.query)
    return AttentionRules(tuple(accumulate(lengths, initial=0)), 0.3, **asked)


def draw(
    heads: Heads, rows: int = sum(LENGTHS), dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    """q, k and v as transformers passes them: [heads, T, width], transposed in memory."""
    generator = torch.Generator().manual_seed(rows + heads.width)
    shapes = ((heads.query, heads.width), (heads.kv, heads.width), (heads.kv, heads.value_width))
    return [
        torch.randn(rows, count, width, generator=generator)
        .to(dtype)
        .transpose(0, 1)
        .requires_grad_()
        for count, width in shapes
    ]


def step(run: Run, tensors: list[torch.Tensor], rules: AttentionRules) -> list[torch.Tensor]:
    """The output, and the gradients of q, k and v, from a fixed gradient of the output."""
    out = run(*tensors, rules)
    generator = torch.Generator().manual_seed(1)
    dout = torch.randn(out.shape, generator=generator).to(tensors[0].dtype)
    dout = dout.to(device=out.device, dtype=out.dtype)
    return [out.detach(), *torch.autograd.grad(out, tensors, dout)]


def expect(tensors: list[torch.Tensor], rules: AttentionRules) -> list[torch.Tensor]:
    """The reference's step in float64, from the same numbers."""
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    out = reference.packed_attention(*exact, rules)
    generator = torch.Generator().manual_seed(1)
    dout = torch.randn(out.shape, generator=generator).to(tensors[0].dtype).to(out)
    return [out.detach(), *torch.autograd.grad(out, exact, dout)]


def assert_near(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """In the norm of the whole; a gradient may be 0, as those through scores of one row are."""
    found, expected = found.double(), expected.double()
    assert (found - expected).norm() <= tolerance * max(expected.norm(), expected.numel() ** 0.5)


def rows_of(tensor: torch.Tensor, number: int, rows: slice) -> torch.Tensor:
    """Of what :func:`step` gives: rows come first in the output, second in gradients."""
    return tensor[rows] if number == 0 else tensor[:, rows]
