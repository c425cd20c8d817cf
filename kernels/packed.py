"""What the GPU kernels read of a module's adapters: cast factors, and one table row a segment.

The kernels find each factor by its address, so any number of adapters of any ranks goes through one
launch, and every job keeps tensors of its own.

Both factors are cast to the compute dtype as [r, columns]: A as it is, B transposed. Rows start at
multiples of 16 elements, so that whole rows load in the widest transactions whatever K and N are.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.weak import WeakIdKeyDictionary

from lorafusion.errors import KernelError
from lorafusion.kernels.dropout import rescale
from lorafusion.kernels.hashing import signed
from lorafusion.kernels.launch_configs import rank_chunk
from lorafusion.kernels.layout import AdapterLayout, FusedForm, ModuleAdapters

COLUMNS = 8
"""Addresses of A and B, rank, dropout threshold, bits of scale and of 1/(1-p), module key, 0."""
ALIGNMENT = 16
"""Elements that a factor's rows and S's rows are multiples of."""


class RowKeys(NamedTuple):
    """What the rows' dropout depends on, on the kernels' device; see :class:`AdapterLayout`."""

    prefix: torch.Tensor
    sample: torch.Tensor
    position: torch.Tensor


@dataclass(frozen=True)
class PackedForms:
    """The adapters of one module on the segments of one layout."""

    table: torch.Tensor
    """int64 [segments, COLUMNS]."""
    ranks: tuple[int, ...]
    """By segment; 0 without an adapter or without rows."""
    dropout: bool
    """Whether any segment drops elements."""
    stride_a: int
    stride_b: int
    factors: Sequence[torch.Tensor]
    """What the addresses in the table point to."""

    @property
    def width(self) -> int:
        """Columns of S and dS: the largest rank, rounded up."""
        return round_up(max(self.ranks, default=0), ALIGNMENT)

    @property
    def chunk(self) -> int:
        """See :func:`rank_chunk`."""
        return rank_chunk(max(self.ranks, default=1))


def check_dtype(x: torch.Tensor) -> None:
    """Kernels know the dtype of ``x``.

    Raises:
        KernelError: It is float64.
    """
    if x.dtype == torch.float64:
        raise KernelError(
            "the triton backend takes bfloat16, float16 and float32, not float64; "
            "LORAFUSION_BACKEND=reference runs it on any device."
        )


def round_up(length: int, multiple: int) -> int:
    """The smallest multiple that is at least ``length``."""
    return -(-length // multiple) * multiple


# By the identity of a call's ModuleAdapters: lora_linear makes one a call, and the backward of that
# call has it, so the factors are cast once for both. Not kept from step to step by a factor's
# version: torch's fused AdamW writes parameters without raising it, and what is kept would be stale
# without a sign. Casting costs r·6 bytes a column, where X alone costs 2·rows.
_packed: Any = WeakIdKeyDictionary()
_moved: Any = WeakIdKeyDictionary()


def pack(layout: AdapterLayout, adapters: ModuleAdapters, x: torch.Tensor) -> PackedForms:
    """Cast the factors of the jobs that are here to x's dtype, and list them by segment.

    Raises:
        KernelError: x is float64.
    """
    check_dtype(x)
    here = {row.slot: row.form for row in layout.adapted_rows(adapters)}
    key = (
        x.dtype,
        layout.segment_slots,
        tuple((slot, form.dropout, *map(_state, form[:2])) for slot, form in here.items()),
    )
    kept = _packed.setdefault(adapters, {})
    if key not in kept:
        kept[key] = _pack(layout, adapters.key, here, x)
    return kept[key]


def row_keys(layout: AdapterLayout, device: torch.device) -> RowKeys:
    """The layout's row tensors on a device; moved once a layout if they are elsewhere."""
    found = (layout.row_prefix_T, layout.row_sample_T, layout.row_position_T)
    if layout.row_prefix_T.device == device:
        return RowKeys(*found)
    moved = _moved.setdefault(layout, {})
    if device not in moved:
        moved[device] = RowKeys(*torch.stack(found).to(device, non_blocking=True))
    return moved[device]


def _state(factor: torch.Tensor) -> tuple[int, int]:
    """Changes when a factor is replaced, or written to in the ordinary way."""
    return factor.data_ptr(), 0 if factor.is_inference() else factor._version


def _pack(
    layout: AdapterLayout, module_key: int, here: dict[int, FusedForm], x: torch.Tensor
) -> PackedForms:
    factors: list[torch.Tensor] = []
    rows: list[tuple[int, ...]] = []
    ranks: list[int] = []
    starts = layout.segment_starts
    for slot, start, stop in zip(layout.segment_slots, starts[:-1], starts[1:], strict=True):
        form = here.get(slot) if stop > start else None
        if form is None:
            rows.append((0,) * COLUMNS)
            ranks.append(0)
            continue
        a, b = _cast(form.A, x.dtype), _cast(form.B.T, x.dtype)
        factors += [a, b]
        ranks.append(len(form.A))
        rows.append(
            (
                a.data_ptr(),
                b.data_ptr(),
                len(form.A),
                form.dropout,
                _bits(form.scale),
                _bits(rescale(form.dropout)),
                signed(module_key),
                0,
            )
        )
    return PackedForms(
        table=torch.tensor(rows, dtype=torch.int64).view(-1, COLUMNS).to(x.device),
        ranks=tuple(ranks),
        dropout=any(form.dropout for form in here.values()),
        stride_a=factors[0].stride(0) if factors else 0,
        stride_b=factors[1].stride(0) if factors else 0,
        factors=factors,
    )


def _cast(factor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[r, columns] in ``dtype``, its rows at multiples of 16 elements."""
    rank, columns = factor.shape
    copy = factor.new_empty(rank, round_up(columns, ALIGNMENT), dtype=dtype)[:, :columns]
    return copy.copy_(factor.detach())


def _bits(number: float) -> int:
    """Of the nearest float32, as a signed integer."""
    return struct.unpack("<i", struct.pack("<f", number))[0]
