"""Whether ways of the same thing compute the same, before anybody looks at their speed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from lorafusion.bench.linear import FROZEN, OURS, PEFT, TORCH, UNFUSED, Case, Tensors, make_way
from lorafusion.bench.settings import OURS as TRAINED_BY_US
from lorafusion.bench.summary import Comparison

__all__ = ["disagreements", "wrong_losses"]

# Of the norm of a result: a few roundings of the products' sums. bfloat16 keeps 8 bits.
_CLOSE = {"float64": 1e-12, "float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}
# Of a step's loss, after some steps of AdamW, whose first one is a sign.
_LOSSES = {"float64": 1e-8, "float32": 1e-3}


def disagreements(case: Case, names: Iterable[str], device: str) -> list[str]:
    """What differs in Y, dX, dA and dB, way by way; empty where all is well.

    Without dropout the ways are held against PEFT's layer with float32 factors. With dropout masks
    are others than PEFT's, and ours without the compiled loops is held against ours with them.

    Args:
        case: What is computed.
        names: The ways. The base alone and a single job on all rows compute something else.
        device: Where.
    """
    ways = [name for name in names if name not in (FROZEN, UNFUSED, PEFT)]
    plain = Tensors(replace(case, dropout=0.0), device)
    found = list(_against(PEFT, ways, plain))
    if case.dropout and {OURS, TORCH} <= set(ways):
        found += _against(OURS, [TORCH], Tensors(case, device))
    return found


def _against(reference: str, names: Sequence[str], tensors: Tensors) -> Iterator[str]:
    wanted = _results(make_way(reference, tensors))
    allowed = _CLOSE[tensors.case.dtype]
    for name in names:
        for what, tensor in _results(make_way(name, tensors)).items():
            right = wanted[what].double()
            off = float((tensor.double() - right).norm() / right.norm())
            if not off <= allowed:
                yield (
                    f"{name}: {what} differs by {off:.1e} of its norm from that of {reference}; "
                    f"allowed: {allowed:.0e}."
                )


def _results(way: Any) -> dict[str, torch.Tensor]:
    way.prepare()
    y = way.forward()
    way.backward()
    return {"Y": y, **way.gradients()}


def wrong_losses(comparisons: Iterable[Comparison], dtype: str) -> list[str]:
    """Jobs whose losses differ from those of a way with the same batches and no dropout.

    In bfloat16 single steps differ by rounding, most where few tokens are trained: nothing is asked
    of them.
    """
    allowed = _LOSSES.get(dtype)
    return [
        f"{loss.job}: a step's loss differs by {loss.worst_step:.1e} between {TRAINED_BY_US} and "
        f"{loss.way}; allowed: {allowed:.0e}."
        for comparison in comparisons
        for loss in comparison.losses
        if allowed is not None and loss.worst_step is not None and not loss.worst_step <= allowed
    ]
