"""How the rows are cut, so that the logits of a chunk keep to a number of bytes."""

from __future__ import annotations

from collections.abc import Iterator


def chunks(rows: int, row_bytes: int, most_bytes: int) -> Iterator[slice]:
    """Slices of almost equal length, so that none is a small rest, which costs a whole pass over W.

    They depend on nothing else: in deterministic mode, where a call has the rows of one sample,
    every product's shape is the sample's own.

    Args:
        rows: To cut.
        row_bytes: Of the logits of one.
        most_bytes: Of the logits of a chunk, if it has more than one row.
    """
    most_rows = max(1, most_bytes // row_bytes)
    count = -(-rows // most_rows)
    for number in range(count):
        yield slice(rows * number // count, rows * (number + 1) // count)
