"""The layout of the microbatch that is in its forward now.

A stage binds the layout only while it runs that forward. The autograd Functions keep it in their
context, because a GPU's backward runs on threads of autograd's own, where nothing is bound.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from lorafusion.kernels.layout import AdapterLayout


class _Binding(NamedTuple):
    layout: AdapterLayout
    scratch: dict[str, Any]


_BOUND: ContextVar[_Binding | None] = ContextVar("bound_layout", default=None)


@contextmanager
def bind_layout(layout: AdapterLayout) -> Generator[None]:
    """Route the rows of every adapted linear and attention inside the block by ``layout``."""
    token = _BOUND.set(_Binding(layout, {}))
    try:
        yield
    finally:
        _BOUND.reset(token)


def bound_layout() -> AdapterLayout | None:
    """The bound layout, or None outside of a packed forward."""
    bound = _BOUND.get()
    return None if bound is None else bound.layout


def bound_scratch() -> dict[str, Any]:
    """What linears leave for each other, by full name; of this binding alone, and empty at first.

    A repeated forward binds again, so it never meets what another one has left.
    """
    bound = _BOUND.get()
    assert bound is not None, "nothing is bound"
    return bound.scratch
