"""Which elements of a LoRA input are dropped: integer arithmetic on what the element *is*.

An element's fate depends on (job seed, step, module's name, sample index, position, column) and on
nothing else: the same mask comes out alone, packed with other jobs, recomputed, resumed, on every
backend. One SplitMix64 finaliser serves four columns, so no generator state is ever kept.
"""

from __future__ import annotations

import torch

from lorafusion.kernels.hashing import GOLDEN, finalise_, signed

LEVELS = 1 << 16
_SIGN_BITS = 0x8000_8000_8000_8000


def threshold(p: float) -> int:
    """Dropout probability in steps of 1/65536: an element is kept iff its lane >= threshold."""
    return min(round(p * LEVELS), LEVELS - 1)


def rescale(threshold: int) -> float:
    """What kept elements are multiplied by: 1 / (1 - threshold/65536)."""
    return LEVELS / (LEVELS - threshold)


def keep_mask(row_key_T: torch.Tensor, columns: int, threshold: int) -> torch.Tensor:
    """The kept elements of ``T`` rows.

    Args:
        row_key_T: int64 [T], from :meth:`AdapterLayout.row_keys`.
        columns: Width K of the input.
        threshold: See :func:`threshold`.

    Returns:
        bool [T, K]. Columns 4c..4c+3 take the 16-bit lanes, low lane first, of
        ``finalise(row_key + (c+1)·GOLDEN)``.
    """
    groups = -(-columns // 4)
    counter = torch.arange(1, groups + 1, device=row_key_T.device).mul_(signed(GOLDEN))
    z = finalise_(row_key_T[:, None] + counter)
    # int16 compares signed: flipping the sign bits maps unsigned order onto it.
    # Flat first: with no rows, torch gives a single group a stride of 0 and refuses the view.
    lanes = z.bitwise_xor_(signed(_SIGN_BITS)).flatten().view(torch.int16)
    return lanes.view(len(z), 4 * groups)[:, :columns] >= threshold - LEVELS // 2


def dropped(x_TK: torch.Tensor, row_key_T: torch.Tensor, threshold: int) -> torch.Tensor:
    """D(X): the dropped elements are 0, the kept ones are rescaled."""
    return (x_TK * keep_mask(row_key_T, x_TK.shape[1], threshold)).mul_(rescale(threshold))
