"""Bytes of the shared parts, as :mod:`lorafusion.kernels.traffic` counts those of a single linear.

A call is given the :class:`Shape` of every projection: they have the same rows and K.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lorafusion.kernels.launch_configs import LaunchConfig, rank_chunk
from lorafusion.kernels.traffic import (
    _KEYS,
    _ROW_KEYS,
    _TILE,
    _WORD,
    Bytes,
    SegmentShape,
    Shape,
    _sums,
    _tiles,
)

MOST = 3
"""See :mod:`lorafusion.kernels.shared_input.table`."""


def shared_issued(op: str, shapes: Sequence[Shape], config: LaunchConfig) -> Bytes:
    """What the programs of a part load and store.

    Args:
        op: The single op's name; of grad_down each projection has its own.
        shapes: The projections.
        config: How the part is cut.
    """
    if op == "up":
        return _up(shapes, config)
    if op == "grad_input":
        return _grad_input(shapes, config)
    count, total = {"down": _down, "grad_a": _grad_a}[op], Bytes()
    for first in range(0, len(shapes), MOST):
        total += count(shapes[first : first + MOST], config)
    return total


def shared_compulsory(op: str, shapes: Sequence[Shape]) -> Bytes:
    """Every operand of a part once: X, and dX, once for all projections."""
    first = shapes[0]
    most = max(first.rows, first.K, *(max(shape.N, shape.width) for shape in shapes), 1)
    whole = LaunchConfig(BM=most, BN=most, BK=most, BR=most, span=most, atomic=False)
    if op in ("down", "grad_a"):
        return (_down if op == "down" else _grad_a)(shapes, whole)
    count = (_up if op == "up" else _grad_input)(shapes, whole)
    again = max(sum(segment.rows > 0 for segment in first.segments) - 1, 0)
    for shape in shapes:  # the programs of each segment read W
        shared = shape.N * shape.K + (shape.N if shape.bias and op == "up" else 0)
        count += Bytes(loads=-again * shared * shape.size)
    if op == "up":  # and those of each projection X
        count += Bytes(loads=-(len(shapes) - 1) * first.rows * first.K * first.size)
    return count


class _Cut:
    """How the ranks of several projections are cut."""

    def __init__(self, shapes: Sequence[Shape], config: LaunchConfig) -> None:
        rank = max(shape.rank for shape in shapes)
        # A configuration of one tile has no limit on its ranks.
        chunk = config.BR if config.BR > 64 else min(rank_chunk(max(rank, 1)), config.BR)
        self.BR = chunk
        self.width = max(shape.width for shape in shapes)
        self.chunks = _tiles(self.width, chunk)
        self.dropout = any(shape.dropout for shape in shapes)
        self._shapes = shapes

    def each(self, height: int) -> Iterator[tuple[list[SegmentShape], int, int]]:
        """Every segment with rows: of each projection, the rows, and the tiles of ``height``."""
        for segments in zip(*(shape.segments for shape in self._shapes), strict=True):
            rows = segments[0].rows
            if rows:
                yield list(segments), rows, _tiles(rows, height)


def _down(shapes: Sequence[Shape], config: LaunchConfig) -> Bytes:
    cut, count, first = _Cut(shapes, config), Bytes(), shapes[0]
    if not cut.width:
        return count
    for segments, rows, tiles in cut.each(config.BM):
        programs = tiles * cut.chunks
        # Of each: the addresses of the forms, A and S, the rank, and S's columns.
        loads = programs * (_TILE + len(shapes) * 5 * _WORD)
        if cut.dropout:  # a prefix; of each a key, a threshold and 1/(1-p)
            loads += programs * (1 + 3 * len(shapes)) * _WORD + cut.chunks * rows * _ROW_KEYS
        chunks = _tiles(max(segment.rank for segment in segments), cut.BR)
        loads += chunks * rows * first.K * first.size
        loads += tiles * sum(segment.rank for segment in segments) * first.K * first.size
        count += Bytes(loads, rows * sum(shape.width for shape in shapes) * 4)
    return count


def _up(shapes: Sequence[Shape], config: LaunchConfig) -> Bytes:
    cut, count = _Cut(shapes, config), Bytes()
    bias = any(shape.bias for shape in shapes)
    for segments, rows, tiles in cut.each(config.BM):
        for shape, segment in zip(shapes, segments, strict=True):
            across = _tiles(shape.N, config.BN)
            # The block, two sizes, two addresses; of LoRA two sizes, three addresses, rank, scale.
            words = 6 + (7 if cut.width else 0) + (2 if bias else 0)
            loads = tiles * across * (_TILE + words * _WORD)
            loads += across * rows * _ranks(segment, shape, cut) * 4
            loads += tiles * segment.rank * shape.N * shape.size
            loads += (across * rows + tiles * shape.N) * shape.K * shape.size
            loads += tiles * shape.N * shape.size if shape.bias else 0
            count += Bytes(loads, rows * shape.N * shape.size)
    return count


def _grad_input(shapes: Sequence[Shape], config: LaunchConfig) -> Bytes:
    cut, count, first = _Cut(shapes, config), Bytes(), shapes[0]
    across = _tiles(first.K, config.BN)
    for segments, rows, tiles in cut.each(config.BM):
        programs = tiles * across
        count += Bytes(programs * _TILE, rows * first.K * first.size)
        for shape, segment in zip(shapes, segments, strict=True):
            words = 4 + (6 if cut.width else 0)
            loads = programs * words * _WORD
            if cut.width and cut.dropout:
                loads += programs * 4 * _WORD + across * rows * _ROW_KEYS
            loads += across * rows * _ranks(segment, shape, cut) * 4
            loads += tiles * segment.rank * shape.K * shape.size
            loads += (across * rows + tiles * shape.K) * shape.N * shape.size
            count += Bytes(loads)
    return count


def _grad_a(shapes: Sequence[Shape], config: LaunchConfig) -> Bytes:
    cut, count, first = _Cut(shapes, config), Bytes(), shapes[0]
    wanted = [[s.rank if s.wanted else 0 for s in shape.segments] for shape in shapes]
    here = [segment.rows > 0 for segment in first.segments]
    if not any(rank and rows for own in wanted for rank, rows in zip(own, here, strict=True)):
        return count
    across = _tiles(first.K, config.BK)
    for segments, rows, tiles in cut.each(config.span):
        ranks = [segment.rank if segment.wanted else 0 for segment in segments]
        programs = tiles * across * cut.chunks
        # Of each: addresses of the forms, dS and dA, the rank, dS's columns, the place of the share
        # at the start and at the end.
        words = 9 + (2 if cut.dropout else 0)
        loads = programs * (_TILE + len(shapes) * words * _WORD)
        chunks = _tiles(max(ranks), cut.BR)
        loads += chunks * rows * first.K * first.size
        loads += across * rows * sum(ranks) * 4  # dS
        if cut.dropout:
            blocks = _tiles(rows, config.BM)
            keys = _KEYS + (len(shapes) - 1) * _WORD
            loads += chunks * across * (blocks * keys + rows * _ROW_KEYS)
        count += Bytes(loads, tiles * sum(ranks) * first.K * 4)
    for shape in shapes:
        parts = [
            (_tiles(s.rows, config.span), s.rank * shape.K)
            for s in shape.segments
            if s.rows and s.rank and s.wanted
        ]
        count += _sums(parts) if parts else Bytes()
    return count


def _ranks(segment: SegmentShape, shape: Shape, cut: _Cut) -> int:
    """Columns of S or dS that a program loads."""
    return min(_tiles(segment.rank, cut.BR) * cut.BR, shape.width)
