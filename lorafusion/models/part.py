"""The layers of the base that one stage holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Consecutive layers, at least one.

    Attributes:
        layers: By their numbers in the whole base.
        total: Layers of the whole base.
    """

    layers: range
    total: int

    @classmethod
    def whole(cls, total: int) -> Part:
        """All of the base."""
        return cls(range(total), total)

    @property
    def first(self) -> bool:
        """Whether the embedding belongs to it."""
        return self.layers.start == 0

    @property
    def last(self) -> bool:
        """Whether the final norm, the head and the loss belong to it."""
        return self.layers.stop == self.total
