"""Bytes and operations of the GPU's ops: what they must move, and what their programs ask for.

*Compulsory* bytes are those of a program for each segment that holds all of it, with the base's
weight read once. *Issued* bytes are what the programs of a configuration load and store, tile by
tile, with re-reads, partial sums, row keys and tables; caches serve a part of them. Elements that a
program masks out are not counted.

An operand is counted in the letters of the ops: X [T, K], Y [T, N], W [N, K], A [r, K], B [N, r], S
[T, R] in float32, with R the largest rank rounded up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lorafusion.kernels.launch_configs import LaunchConfig, rank_chunk

ALIGNMENT = 16
_SUM_BLOCK = 1024
# Bytes of table entries that every program reads: its tile; an address, a rank or another number.
_TILE, _WORD = 12, 8
# With dropout: a prefix, the module's key, the threshold and 1/(1-p); and two words a row.
_DROPOUT, _KEYS, _ROW_KEYS = 4 * _WORD, 2 * _WORD, 2 * _WORD
LARGEST_PARTIALS = 0.3
"""Share of dY's bytes that partial sums of dB may be, before they are added atomically."""


@dataclass(frozen=True)
class SegmentShape:
    """Rows of one job. ``rank`` 0: no adapter here; ``wanted``: its factors get a gradient."""

    rows: int
    rank: int
    wanted: bool = True


@dataclass(frozen=True)
class Shape:
    """One multi-adapter linear.

    Attributes:
        segments: The jobs' rows, one after the other.
        K: Columns of X.
        N: Columns of Y.
        size: Bytes of an element of the base's dtype.
        dropout: Whether any job drops elements.
        bias: Whether the base has one.
    """

    segments: Sequence[SegmentShape]
    K: int
    N: int
    size: int = 2
    dropout: bool = True
    bias: bool = False

    @classmethod
    def even(cls, rows: int, K: int, N: int, *, jobs: int = 4, rank: int = 16) -> Shape:
        """Some jobs of equal rank, with dropout, in 16 bits; the last takes what is left over."""
        lengths = [rows // jobs] * (jobs - 1) + [rows - rows // jobs * (jobs - 1)]
        return cls([SegmentShape(length, rank) for length in lengths], K, N)

    @property
    def rows(self) -> int:
        """T."""
        return sum(segment.rows for segment in self.segments)

    @property
    def rank(self) -> int:
        """The largest of the jobs that have rows."""
        return max((segment.rank for segment in self.segments if segment.rows), default=0)

    @property
    def width(self) -> int:
        """R."""
        return _tiles(self.rank, ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Bytes:
    """What programs load, store, and add atomically to memory."""

    loads: int = 0
    stores: int = 0
    adds: int = 0

    def __add__(self, other: Bytes) -> Bytes:
        return Bytes(self.loads + other.loads, self.stores + other.stores, self.adds + other.adds)

    @property
    def total(self) -> int:
        """An addition in memory reads and writes."""
        return self.loads + self.stores + 2 * self.adds


def issued(op: str, shape: Shape, config: LaunchConfig) -> Bytes:
    """What the programs of an op load and store.

    Args:
        op: One of ``OPS``.
        shape: The linear.
        config: How the op is cut. ``atomic`` None: see :func:`uses_atomics`.
    """
    return _COUNTS[op](shape, config, _Cut(shape, config))


def compulsory(op: str, shape: Shape) -> Bytes:
    """Every operand of an op once."""
    most = max(shape.rows, shape.K, shape.N, shape.width, 1)
    whole = LaunchConfig(BM=most, BN=most, BK=most, BR=most, span=most, atomic=False)
    count = _COUNTS[op](shape, whole, _Cut(shape, whole, chunk=most))
    if op in ("up", "grad_input"):
        again = sum(segment.rows > 0 for segment in shape.segments) - 1
        shared = shape.N * shape.K + (shape.N if shape.bias and op == "up" else 0)
        count += Bytes(loads=-max(again, 0) * shared * shape.size)
    return count


def flops(op: str, shape: Shape) -> int:
    """Multiplications and additions of an op's matrix products."""
    columns = shape.N if op in ("up", "grad_down") else shape.K
    base = 2 * shape.rows * shape.K * shape.N if op in ("up", "grad_input") else 0
    for segment in shape.segments:
        product = 2 * segment.rows * segment.rank * columns
        if op == "grad_down":
            base += product * (1 + segment.wanted)
        elif op != "grad_a" or segment.wanted:
            base += product
    return base


def partial_bytes(shape: Shape, config: LaunchConfig) -> int:
    """Bytes of grad_down's partial sums of dB; 0 where every tile's share is the whole."""
    wanted = [s for s in shape.segments if s.wanted and s.rank and s.rows]
    tiles = [_tiles(s.rows, config.BM) for s in wanted]
    if all(count == 1 for count in tiles):
        return 0
    return sum(4 * t * s.rank * shape.N for t, s in zip(tiles, wanted, strict=True))


def uses_atomics(shape: Shape, config: LaunchConfig) -> bool:
    """Whether grad_down adds dB atomically: where told to, or where the partial sums are large."""
    if config.atomic is not None:
        return config.atomic
    return too_large(partial_bytes(shape, config), shape.rows * shape.N * shape.size)


def too_large(partials: int, dy: int) -> bool:
    """Whether partial sums of so many bytes are too much beside dY's."""
    return partials > LARGEST_PARTIALS * dy


def unfused(shape: Shape, *, backward: bool) -> int:
    """Bytes of separate operations, each operand of each moved once, job by job.

    Forward: dropout, X̂Aᵀ, XWᵀ, SBᵀ, times s, plus. Backward: times s, dS, dB, dX̂, dA, dropout,
    dY·W, plus. All tensors are of the base's dtype, and masks of a byte an element.
    """
    total = 0
    for segment in shape.segments:
        rows, size = segment.rows, shape.size
        x, y, mask = rows * shape.K * size, rows * shape.N * size, rows * shape.K
        s, w = rows * segment.rank * size, shape.N * shape.K * size
        a, b = segment.rank * shape.K * size, segment.rank * shape.N * size
        drop = 2 * x + mask if shape.dropout else 0
        if backward:
            total += drop + 6 * x + 5 * y + w + 4 * s + 2 * a + 2 * b
        else:
            total += drop + 2 * x + 7 * y + w + 2 * s + a + b
    return total


class _Cut:
    """What the counts of several ops share: how ranks are cut, and how rows are."""

    def __init__(self, shape: Shape, config: LaunchConfig, chunk: int | None = None) -> None:
        self.BR = min(chunk or rank_chunk(max(shape.rank, 1)), config.BR)
        self.chunks = _tiles(shape.width, self.BR)
        self._segments = shape.segments

    def each(self, height: int) -> Iterator[tuple[SegmentShape, int, int]]:
        """Every segment with rows, its tiles of ``height``, and its chunks of ranks."""
        for segment in self._segments:
            if segment.rows:
                yield segment, _tiles(segment.rows, height), _tiles(segment.rank, self.BR)


def _down(shape: Shape, config: LaunchConfig, cut: _Cut) -> Bytes:
    count = Bytes()
    if not shape.width:
        return count
    for segment, tiles, chunks in cut.each(config.BM):
        programs = tiles * cut.chunks
        loads = programs * (_TILE + 2 * _WORD)
        if shape.dropout:
            loads += programs * _DROPOUT + cut.chunks * segment.rows * _ROW_KEYS
        loads += (chunks * segment.rows + tiles * segment.rank) * shape.K * shape.size
        count += Bytes(loads, segment.rows * shape.width * 4)
    return count


def _up(shape: Shape, config: LaunchConfig, cut: _Cut) -> Bytes:
    return _gemm(shape, config, cut, backward=False)


def _grad_input(shape: Shape, config: LaunchConfig, cut: _Cut) -> Bytes:
    return _gemm(shape, config, cut, backward=True)


def _gemm(shape: Shape, config: LaunchConfig, cut: _Cut, *, backward: bool) -> Bytes:
    inner, outer = (shape.N, shape.K) if backward else (shape.K, shape.N)
    across = _tiles(outer, config.BN)
    count, start = Bytes(), 0
    for segment, tiles, chunks in cut.each(config.BM):
        programs, rows = tiles * across, segment.rows
        loads = programs * _TILE
        if shape.width:
            loads += programs * 2 * _WORD  # the factor's address, and the rank
            loads += across * rows * min(chunks * cut.BR, shape.width) * 4  # S or dS
            loads += tiles * segment.rank * outer * shape.size
            if not backward:
                loads += programs * _WORD  # the scale
            elif shape.dropout:
                loads += programs * _DROPOUT + across * rows * _ROW_KEYS
        read = rows
        if config.tma:  # whole tiles, with their neighbours' rows
            firsts = range(start, start + rows, config.BM)
            read = sum(min(config.BM, shape.rows - first) for first in firsts)
        loads += (across * read + tiles * outer) * inner * shape.size
        if shape.bias and not backward:
            loads += tiles * outer * shape.size
        count += Bytes(loads, rows * outer * shape.size)
        start += rows
    return count


def _grad_down(shape: Shape, config: LaunchConfig, cut: _Cut) -> Bytes:
    if not shape.width:
        return Bytes()
    spans = _tiles(shape.N, config.span)
    atomic = uses_atomics(shape, config)
    count, parts = Bytes(), []
    for segment, tiles, chunks in cut.each(config.BM):
        shares = tiles * segment.rank * shape.N * 4 if segment.wanted else 0
        parts += [(tiles, segment.rank * shape.N)] if shares else []
        s = segment.rows * shape.width * 4 * spans
        programs = tiles * spans * cut.chunks
        # The address of B, rank, scale, and the place of the tile's share.
        loads = programs * (_TILE + 6 * _WORD) + s
        loads += (chunks * segment.rows + tiles * segment.rank) * shape.N * shape.size
        stores, adds = (0, shares) if atomic else (shares, 0)
        count += Bytes(loads, stores + s, adds)
    if not atomic:
        count += _sums(parts)
    return count + _sums([(spans, shape.rows * shape.width)])


def _grad_a(shape: Shape, config: LaunchConfig, cut: _Cut) -> Bytes:
    across = _tiles(shape.K, config.BK)
    if not any(s.wanted and s.rank and s.rows for s in shape.segments):
        return Bytes()
    count, parts = Bytes(), []
    for segment, tiles, chunks in cut.each(config.span):
        programs, rows = tiles * across * cut.chunks, segment.rows
        # The rank, and the place of the tile's share.
        loads = programs * (_TILE + 4 * _WORD + (2 * _WORD if shape.dropout else 0))
        if not segment.wanted or not segment.rank:
            count += Bytes(loads)
            continue
        parts.append((tiles, segment.rank * shape.K))
        loads += across * rows * min(chunks * cut.BR, shape.width) * 4  # dS
        loads += chunks * rows * shape.K * shape.size
        if shape.dropout:
            blocks = _tiles(rows, config.BM)
            loads += chunks * across * (blocks * _KEYS + rows * _ROW_KEYS)
        count += Bytes(loads, tiles * segment.rank * shape.K * 4)
    return count + _sums(parts)


def _sums(parts: Sequence[tuple[int, int]]) -> Bytes:
    """Adding up partial sums, given as (how many, elements); none where each is the only one."""
    if all(count == 1 for count, _ in parts):
        return Bytes()
    programs = _tiles(max(elements for _, elements in parts), _SUM_BLOCK) * len(parts)
    loads = programs * 4 * _WORD + sum(count * elements * 4 for count, elements in parts)
    return Bytes(loads, sum(elements * 4 for _, elements in parts))


def _tiles(length: int, size: int) -> int:
    return -(-length // size)


_COUNTS = {
    "down": _down,
    "up": _up,
    "grad_down": _grad_down,
    "grad_input": _grad_input,
    "grad_a": _grad_a,
}
