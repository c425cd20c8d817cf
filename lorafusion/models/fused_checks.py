"""What the searches for fused modules share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch


def takes_one(forward: Callable[..., Any]) -> bool:
    """Whether a class's forward takes one thing beside the module, and no more."""
    return len(inspect.signature(forward).parameters) == 2


def tried(run: Callable[..., Any], *args: Any) -> Any:
    """What a function gives that may not be meant for such arguments; None where it raises."""
    try:
        return run(*args)
    except (TypeError, ValueError, RuntimeError, IndexError):
        return None


def equal(found: object, expected: torch.Tensor) -> bool:
    """Whether it is a tensor of the same dtype, shape and bits."""
    return (
        isinstance(found, torch.Tensor)
        and found.dtype == expected.dtype
        and torch.equal(found, expected)
    )
