"""Which attentions turn q and k by a rotary function that the op can stand for.

It is a global function of each of transformers' modeling files, and they stay as they are: an
attention gets a copy of its forward in which the function's name means the op.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import nn

from lorafusion.kernels.rotary import reference, rotary
from lorafusion.models.fused_checks import equal, tried

Rotary = Callable[..., tuple[torch.Tensor, torch.Tensor]]
_PARAMETERS = ["q", "k", "cos", "sin"]


class Angles(NamedTuple):
    """What cos and sin are like."""

    dtype: torch.dtype
    partial: bool
    """Whether they turn a part of each head only."""


class RotaryChecks:
    """Which functions are the op, and for which cos and sin; each is run once."""

    def __init__(self, model: nn.Module) -> None:
        """``model`` says where and in which dtype they are run."""
        some = next(model.parameters())
        self._device, self._dtype = some.device, some.dtype
        self._found: dict[Any, frozenset[Angles]] = {}

    def angles(self, function: Any) -> frozenset[Angles]:
        """Those with which it does, bit for bit, what the op's reference does."""
        if function not in self._found:
            dtypes = {self._dtype, torch.promote_types(self._dtype, torch.float32)}
            asked = [Angles(dtype, partial) for dtype in dtypes for partial in (False, True)]
            self._found[function] = frozenset(a for a in asked if self._fits(function, a))
        return self._found[function]

    def _fits(self, function: Any, angles: Angles) -> bool:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(self._device)

        # cos and sin of no angle: halves that differ tell apart which of them is read.
        q, k = draw(1, 3, 5, 8).to(self._dtype), draw(1, 2, 5, 8).to(self._dtype)
        cos, sin = (draw(1, 5, 4 if angles.partial else 8).to(angles.dtype) for _ in range(2))
        expected = reference.rotary(q, k, cos, sin)
        found = tried(function, q, k, cos, sin)
        return isinstance(found, tuple) and len(found) == 2 and all(map(equal, found, expected))


def find_rotary(module: nn.Module, checks: RotaryChecks) -> Callable[..., Any] | None:
    """The forward that replaces an attention's own; None where it has no such function."""
    theirs = type(module).forward
    if not isinstance(theirs, FunctionType):
        return None
    names = theirs.__globals__
    for name in theirs.__code__.co_names:
        function = names.get(name)
        if isinstance(function, FunctionType) and _is_candidate(function):
            angles = checks.angles(function)
            if angles:
                return _with_global(theirs, name, _in_one_pass(function, angles))
    return None


def _is_candidate(function: FunctionType) -> bool:
    return list(inspect.signature(function).parameters)[: len(_PARAMETERS)] == _PARAMETERS


def _in_one_pass(theirs: Rotary, allowed: frozenset[Angles]) -> Rotary:
    """The op where it fits the tensors, else ``theirs``, as where they are laid out otherwise."""

    def turn(
        q: torch.Tensor,
        k: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        *args: Any,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, width = q.shape[2:]
        fits = (
            not (args or options)
            and q.shape[0] == 1
            and k.shape == (1, k.shape[1], rows, width)
            and cos.shape == sin.shape == (1, rows, cos.shape[-1])
            and k.dtype == q.dtype
            and Angles(cos.dtype, cos.shape[-1] < width) in allowed
        )
        return (rotary if fits else theirs)(q, k, cos, sin, *args, **options)

    return turn


def _with_global(function: FunctionType, name: str, value: Any) -> FunctionType:
    """The same function, but that one of its global names means something else."""
    copy = FunctionType(
        function.__code__,
        {**function.__globals__, name: value},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
