"""The ways of the elementwise ops that are compared: ours, transformers', compiled, Liger's."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from lorafusion.kernels.gated_product import gated_product
from lorafusion.kernels.rms_norm import NormForm, rms_norm
from lorafusion.kernels.rotary import rotary

OURS, EAGER, COMPILED, LIGER = "lorafusion", "transformers", "torch.compile", "liger"
EPS = 1e-5
Functions = Mapping[str, Callable[[], Callable[..., Any]]]
"""Way -> what makes its function; a way that is not asked for imports nothing."""


class Tensors(NamedTuple):
    """What all ways of a case take."""

    inputs: Sequence[torch.Tensor]
    wanted: Sequence[torch.Tensor]
    """Those of the inputs that get a gradient."""
    gradients: Sequence[torch.Tensor]
    """Of the outputs."""


def make(
    op: str, rows: int, widths: Sequence[int], dtype: str, device: str
) -> tuple[Tensors, Functions]:
    """The tensors of a case, as a layer of transformers has them, and the ways."""
    draw = _Draw(dtype, device)
    if op == "rms_norm":
        return _norm(draw, rows, *widths)
    if op == "rotary":
        return _rotary(draw, rows, *widths)
    return _gated(draw, op, rows, *widths)


class _Draw:
    def __init__(self, dtype: str, device: str) -> None:
        self._dtype, self._device = getattr(torch, dtype), device
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int) -> torch.Tensor:
        drawn = torch.randn(*shape, generator=self._generator)
        return drawn.to(self._device, self._dtype)


def _ready(function: Callable[..., Any]) -> Callable[[], Callable[..., Any]]:
    return lambda: function


def _compiled(function: Callable[..., Any]) -> Callable[[], Callable[..., Any]]:
    # Microbatches differ in their rows: one that is compiled for each of them is of no use.
    return lambda: torch.compile(function, dynamic=True)


def _liger(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"liger_kernel.ops.{module}"), name)


def _norm(draw: _Draw, rows: int, width: int) -> tuple[Tensors, Functions]:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    x, weight, dy = draw(1, rows, width).requires_grad_(), draw(width), draw(1, rows, width)
    norm = LlamaRMSNorm(width, EPS)
    norm.weight = nn.Parameter(weight, requires_grad=False)
    form = NormForm(EPS, rounds_first=True)

    def liger() -> Callable[..., Any]:
        function = _liger("rms_norm", "LigerRMSNormFunction")

        def run(x: torch.Tensor) -> Any:
            return function.apply(x, weight, EPS, 0.0, "llama", False)

        return run

    functions: Functions = {
        OURS: _ready(functools.partial(rms_norm, weight_D=weight, form=form)),
        EAGER: _ready(norm),
        COMPILED: _compiled(norm),
        LIGER: liger,
    }
    return Tensors((x,), (x,), (dy,)), functions


def _rotary(
    draw: _Draw, rows: int, heads: int, kv_heads: int, width: int
) -> tuple[Tensors, Functions]:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    def of_heads(count: int) -> torch.Tensor:
        return draw(1, rows, count, width).transpose(1, 2)

    q, k = of_heads(heads).requires_grad_(), of_heads(kv_heads).requires_grad_()
    # Real angles: Liger reads one half of cos and sin alone.
    steps = torch.arange(0, width, 2) / width
    angles = torch.arange(rows)[:, None] * 1e4**-steps
    both = torch.cat((angles, angles), dim=-1)[None]
    cos, sin = (x.to(q.device, q.dtype) for x in (both.cos(), both.sin()))

    def liger() -> Callable[..., Any]:
        function = _liger("rope", "LigerRopeFunction")

        def run(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
            return function.apply(q.clone(), k.clone(), cos, sin)  # it writes into what it is given

        return run

    functions: Functions = {
        OURS: _ready(rotary),
        EAGER: _ready(apply_rotary_pos_emb),
        COMPILED: _compiled(apply_rotary_pos_emb),
        LIGER: liger,
    }
    return Tensors((q, k, cos, sin), (q, k), (of_heads(heads), of_heads(kv_heads))), functions


def _gated(draw: _Draw, op: str, rows: int, width: int) -> tuple[Tensors, Functions]:
    from transformers.activations import ACT2FN

    gate, up = (draw(1, rows, width).requires_grad_() for _ in range(2))
    activation = ACT2FN["silu" if op == "silu" else "gelu_pytorch_tanh"]

    def plainly(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return activation(gate) * up

    def liger() -> Callable[..., Any]:
        names = {
            "silu": ("swiglu", "LigerSiLUMulFunction"),
            "gelu_tanh": ("geglu", "LigerGELUMulFunction"),
        }
        function = _liger(*names[op])

        def run(gate: torch.Tensor, up: torch.Tensor) -> Any:
            return function.apply(gate.clone(), up.clone())  # its backward writes into them

        return run

    functions: Functions = {
        OURS: _ready(functools.partial(gated_product, activation=op)),
        EAGER: _ready(plainly),
        COMPILED: _compiled(plainly),
        LIGER: liger,
    }
    return Tensors((gate, up), (gate, up), (draw(1, rows, width),)), functions
