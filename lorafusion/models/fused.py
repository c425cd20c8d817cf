"""Norms, rotary positions and gated MLPs of a base as one pass each, while a stage runs.

Transformers' code for them is float32 copies and a pass over memory for every operation. What
replaces it is not chosen by a family's name: a module or function that may be one of these is run
on random rows, and counts as one only if it gives, bit for bit, what the op's reference gives. All
else is left as it is.

The forwards of single modules are replaced, and that only where a layout is bound: outside of a
stage's forward, and for every other model, transformers' own code runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import nn

from lorafusion.kernels.binding import bound_layout
from lorafusion.models.fused_mlp import find_mlp
from lorafusion.models.fused_norm import find_norm
from lorafusion.models.fused_rotary import RotaryChecks, find_rotary

Forward = Callable[..., Any]


class Fused(NamedTuple):
    """Full names of what runs as one pass."""

    norms: tuple[str, ...]
    mlps: tuple[str, ...]
    attentions: tuple[str, ...]
    """Those whose rotary positions do."""


def _are_there(_name: str) -> None:
    """Of a base that is whole."""


@torch.no_grad()
def fuse_elementwise(
    model: nn.Module, linears: Iterable[str], open_weights: Callable[[str], None] = _are_there
) -> Fused:
    """Replace the forwards of the modules that can be fused. Again does nothing more.

    Args:
        model: The base in eval mode, frozen.
        linears: Full names of its linears. Those that are not here are passed over.
        open_weights: Called with a module's full name before its forward is tried.
    """
    wanted = set(linears)
    rotary_checks = RotaryChecks(model)
    found: dict[str, list[str]] = {name: [] for name in Fused._fields}
    for name, module in model.named_modules():
        if not _is_own(module):
            continue
        open_weights(name)
        here = [child for child, _ in module.named_children() if f"{name}.{child}" in wanted]
        for kind, forward in (
            ("norms", find_norm(module)),
            ("mlps", find_mlp(module, here)),
            ("attentions", find_rotary(module, rotary_checks)),
        ):
            if forward is not None:
                _replace(module, forward)
                found[kind].append(name)
    return Fused(**{kind: tuple(names) for kind, names in found.items()})


def _is_own(module: nn.Module) -> bool:
    """Whether its forward is its class's, or what an earlier stage has put there."""
    forward = vars(module).get("forward")
    return forward is None or getattr(forward, "__module__", None) == __name__


def _replace(module: nn.Module, fused: Forward) -> None:
    theirs = type(module).forward

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        run = theirs if bound_layout() is None else fused
        return run(self, *args, **kwargs)

    module.forward = MethodType(forward, module)
