"""Many tensors as one: what is done to each of them costs one operation instead of hundreds."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# Elements of the widest vector that a loop over float32 takes at a time.
_VECTOR = 16


class Flat:
    """Where tensors of one dtype and device lie one behind another in a flat one.

    Each begins at a multiple of 16 elements, and zeros fill what is between. So an elementwise loop
    treats none of them as a remainder, which has other bits than whole vectors have: what becomes
    of a tensor does not depend on which others are there.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        """``tensors``: any of their shapes, dtype and device. There may be none."""
        self._shapes = [tensor.shape for tensor in tensors]
        self._sizes = [shape.numel() for shape in self._shapes]
        self._places = [-(-size // _VECTOR) * _VECTOR for size in self._sizes]
        gaps = {place - size for place, size in zip(self._places, self._sizes, strict=True)}
        like = tensors[0].detach() if tensors else torch.zeros(0)
        self._empty = like.new_empty(0)
        self._fill = {gap: like.new_zeros(gap) for gap in gaps if gap}

    def pack(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """A flat copy of tensors of these shapes."""
        parts = [self._empty]
        for tensor, size, place in zip(tensors, self._sizes, self._places, strict=True):
            parts.append(tensor.detach().reshape(-1))
            if place > size:
                parts.append(self._fill[place - size])
        return torch.cat(parts)

    def full(self, value: float) -> torch.Tensor:
        """A flat tensor of one value."""
        return self._empty.new_full((sum(self._places),), value)

    def views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """The tensors in what :meth:`pack` or :meth:`full` gave; they share its memory."""
        parts = flat.split(self._places)
        return [
            (part if len(part) == size else part[:size]).view(shape)
            for part, size, shape in zip(parts, self._sizes, self._shapes, strict=True)
        ]
