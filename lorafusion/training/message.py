"""What one stage sends another for a place: control numbers, then hidden states or gradients.

One buffer, ``[float64 numbers, padded | rows]``. Both ends know its size from the plan alone, so
that no shapes are exchanged and receives can be posted before anything is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# A device's widest loads want the rows behind the numbers aligned.
ALIGNMENT = 64


@dataclass(frozen=True)
class Shape:
    """Of one message.

    Attributes:
        numbers: How many control numbers.
        rows: Rows T of the tensor; 0 if there is none.
        width: Columns D.
        dtype: Of the tensor.
    """

    numbers: int
    rows: int
    width: int
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Bytes; 0 for nothing to send."""
        return self._start + self.rows * self.width * self.dtype.itemsize

    def pack(self, numbers: Sequence[torch.Tensor], body_TD: torch.Tensor | None) -> torch.Tensor:
        """Numbers (tensors of any shape, in order) and rows as one buffer, uint8 [size]."""
        device = body_TD.device if body_TD is not None else numbers[0].device
        message = torch.empty(self.size, dtype=torch.uint8, device=device)
        control, rows = self.unpack(message)
        if numbers:
            torch.cat([part.detach().reshape(-1).to(control) for part in numbers], out=control)
        if body_TD is not None:
            assert rows is not None
            rows.copy_(body_TD.detach())
        return message

    def unpack(self, message: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Views of a buffer: float64 [numbers], and [T, D] or None."""
        control = message[: self.numbers * 8].view(torch.float64)
        if not self.rows:
            return control, None
        return control, message[self._start :].view(self.dtype).view(self.rows, self.width)

    @property
    def _start(self) -> int:
        return -(-self.numbers * 8 // ALIGNMENT) * ALIGNMENT
