"""What the attention of one layer on one microbatch is."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch


class AttentionRules(NamedTuple):
    """Samples, and what a layer asks for beside causal attention within each of them."""

    starts: tuple[int, ...]
    """N + 1 row numbers: where the samples begin."""
    scaling: float
    """Factor on query · key."""
    window: int | None = None
    """A row sees itself and the ``window - 1`` rows before it; None: all before it."""
    softcap: float | None = None
    """Scores z become c · tanh(z / c)."""
    sinks: torch.Tensor | None = None
    """[heads], frozen: one more score per head in the softmax's sum, which has no value."""

    @property
    def lengths(self) -> list[int]:
        """Rows of each sample."""
        return [stop - start for start, stop in pairwise(self.starts)]

    @property
    def written_out(self) -> bool:
        """Whether torch's own attention cannot do it: between product and softmax, or the sum."""
        return self.softcap is not None or self.sinks is not None
