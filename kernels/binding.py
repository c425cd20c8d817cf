"""The layout of the microbatch that is in its forward now.

A stage binds the layout only while it runs that forward. The autograd Functions keep it in their
context, because a GPU's backward runs on threads of autograd's own, where nothing is bound.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

from lorafusion.kernels.layout import AdapterLayout

_BOUND: ContextVar[AdapterLayout | None] = ContextVar("bound_layout", default=None)


@contextmanager
def bind_layout(layout: AdapterLayout) -> Generator[None]:
    """Route the rows of every adapted linear and attention inside the block by ``layout``."""
    token = _BOUND.set(layout)
    try:
        yield
    finally:
        _BOUND.reset(token)


def bound_layout() -> AdapterLayout | None:
    """The bound layout, or None outside of a packed forward."""
    return _BOUND.get()
