"""How many rows are trained on, and in how many steps. Without numpy, for ``validate``."""

from __future__ import annotations

import math

from lorafusion.errors import DataError


def rows_left(n: int, *, val_size: int) -> int:
    """The rows to train on when ``val_size`` of ``n`` are held out.

    Raises:
        DataError: No row would be left.
    """
    if not 0 <= val_size < n:
        raise DataError(
            f"eval.val_size {val_size} leaves nothing to train on: the dataset has {n} rows; "
            f"allowed: 0 to {n - 1}"
        )
    return n - val_size


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Steps of one epoch, the last partial batch included."""
    assert batch_size >= 1
    if rows == 0:
        raise DataError("there are no rows to train on")
    return math.ceil(rows / batch_size)


def total_steps(per_epoch: int, *, num_epochs: int | None, max_steps: int | None) -> int:
    """Steps of a whole job: whichever of the two ends first; with neither, one epoch."""
    if num_epochs is None and max_steps is not None:
        return max_steps
    whole = per_epoch * (1 if num_epochs is None else num_epochs)
    return whole if max_steps is None else min(whole, max_steps)
