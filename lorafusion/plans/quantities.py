"""Times, shares and names as the drawings and lines show them."""

from __future__ import annotations

from typing import Literal

Unit = Literal["s", "load"]
"""What a simulation's times are in: predicted seconds, or loads where there is no cost model."""

# From this many of the smaller unit on, the larger one is shown.
_SMALLER = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))


def duration(value: float, unit: Unit) -> str:
    """A time, such as ``12.3 ms``, ``4 min 05 s``; for loads ``8,192``."""
    if unit == "load":
        return f"{value:,.0f}"
    if round(value) >= 60:
        minutes, rest = divmod(round(value), 60)
        if minutes < 60:
            return f"{minutes} min {rest:02d} s"
        return f"{minutes // 60:,} h {minutes % 60:02d} min"
    name, size = scale(value, unit)
    return f"{value / size:.3g} {name}" if value < 999.5 * size else f"{value / size:.0f} {name}"


def percent(share: float) -> str:
    """A share, such as ``97.3%``."""
    return f"{share:.1%}"


def scale(most: float, unit: Unit) -> tuple[str, float]:
    """The unit in which times up to ``most`` are read easily: its name and its size."""
    if unit == "load":
        return "load units", 1.0
    return next((entry for entry in _SMALLER if most >= entry[1]), _SMALLER[-1])


def count(number: int, what: str, more: str = "s") -> str:
    """A count with its noun, such as ``1 job`` or ``1,200 jobs``."""
    return f"{number:,} {what}{'' if number == 1 else more}"


def size(number: float) -> str:
    """Bytes, such as ``12.3 GiB``."""
    for name in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.3g} {name}" if number < 1000 else f"{number:.0f} {name}"
        number /= 1024
    return f"{number:,.1f} GiB"


def printable(name: str) -> str:
    """A name without characters that would move a terminal's cursor or break a line."""
    return "".join(char if char.isprintable() else "�" for char in name)
