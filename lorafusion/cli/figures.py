"""Numbers as the tables and lines show them."""

from __future__ import annotations

import math

NOTHING = "-"


def loss(value: float | None) -> str:
    """Nats per token, such as ``1.234``."""
    return NOTHING if value is None else f"{value:.3f}"


def close_loss(value: float | None) -> str:
    """A loss beside others that are close to it, such as ``1.2345``."""
    if value is None:
        return NOTHING
    return f"{value:.4f}" if not abs(value) >= 10_000 else f"{value:.3e}"


def rate(value: float | None) -> str:
    """A learning rate, such as ``8.0e-04``."""
    return NOTHING if value is None else f"{value:.1e}"


def norm(value: float | None) -> str:
    """A gradient norm in three digits, such as ``2.31`` or ``1.2e+04``."""
    if value is None:
        return NOTHING
    return f"{value:.2f}" if not abs(value) >= 1000 else f"{value:.1e}"


def per_second(value: float | None) -> str:
    """Tokens per second, such as ``1,310``."""
    return NOTHING if value is None else f"{value:,.0f}"


def change(before: float | None, after: float | None) -> str:
    """How far a loss went, such as ``-12.3%``."""
    if before is None or after is None or not math.isfinite(after - before) or before == 0:
        return NOTHING
    return f"{(after - before) / before:+.1%}"


def seconds(value: float) -> str:
    """A duration, such as ``3.2 s``, ``4 min 05 s`` or ``2 h 07 min``."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
