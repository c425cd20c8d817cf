"""The GPU's parts. Their configurations are the single ops' defaults: these were never tuned."""

# pyright: reportCallIssue=false
from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence

import torch

from lorafusion.kernels.grad_input.triton import grad_input as single_grad_input
from lorafusion.kernels.gradients import Shares, plan_shares
from lorafusion.kernels.launch_configs import LaunchConfig, architecture, default_config
from lorafusion.kernels.layout import AdapterLayout, Projection
from lorafusion.kernels.packed import PackedForms, row_keys
from lorafusion.kernels.shared_input.table import MOST, Entry, entry_table
from lorafusion.kernels.shared_input.triton_gemm import shared_grad_input_kernel, shared_up_kernel
from lorafusion.kernels.shared_input.triton_narrow import (
    shared_down_kernel,
    shared_grad_a_kernel,
)
from lorafusion.kernels.tiles import int64_table, tile_table
from lorafusion.kernels.triton_parts import on_device, pack_for
from lorafusion.kernels.triton_sum import sum_parts
from lorafusion.kernels.up.triton import up as single_up

Projections = Sequence[Projection]


@on_device
def down(x_TK: torch.Tensor, projections: Projections, layout: AdapterLayout) -> list[torch.Tensor]:
    """See the part. More than three projections take a pass over X for every three."""
    packed = _packed(x_TK, projections, layout)
    s = [x_TK.new_empty(len(x_TK), forms.width, dtype=torch.float32) for forms in packed]
    config = shared_config("shared_down", x_TK)
    tiles = tile_table(layout.segment_starts, config.BM, x_TK.device)
    keys = row_keys(layout, x_TK.device)
    for some in _slices(len(packed)):
        forms = packed[some]
        width, chunk = _width(forms), _chunk(forms, config)
        if not width or not len(tiles):
            continue
        entries = [Entry(one, s=s_TR) for one, s_TR in zip(forms, s[some], strict=True)]
        shared_down_kernel[(len(tiles), -(-width // chunk))](
            x_TK,
            entry_table(entries, x_TK.device),
            tiles,
            *keys,
            x_TK.shape[1],
            x_TK.stride(0),
            max(one.stride_a for one in forms),
            P=len(entries),
            DROPOUT=any(one.dropout for one in forms),
            BM=config.BM,
            BK=config.BK,
            BR=chunk,
            num_warps=config.warps,
            num_stages=config.stages,
        )
    return s


@on_device
def up(
    x_TK: torch.Tensor, projections: Projections, s: Sequence[torch.Tensor], layout: AdapterLayout
) -> list[torch.Tensor]:
    """See the part. Where a W's rows are not contiguous, a GEMM each."""
    if not _rows_contiguous(projections):
        return [
            single_up(x_TK, weight, bias, s_TR, layout, adapters)
            for (weight, bias, adapters), s_TR in zip(projections, s, strict=True)
        ]
    packed = _packed(x_TK, projections, layout)
    ys = [x_TK.new_empty(len(x_TK), len(projection.weight)) for projection in projections]
    config = shared_config("shared_up", x_TK)
    tiles = tile_table(layout.segment_starts, config.BM, x_TK.device)
    entries = [
        Entry(forms, weight, bias, y, s_TR, forms.stride_b)
        for forms, (weight, bias, _), y, s_TR in zip(packed, projections, ys, s, strict=True)
    ]
    blocks = column_blocks(tuple(y.shape[1] for y in ys), config.BN)
    if not len(tiles) or not blocks:
        return ys
    shared_up_kernel[(len(tiles) * len(blocks),)](
        x_TK,
        entry_table(entries, x_TK.device),
        int64_table(blocks, 2, x_TK.device),
        tiles,
        x_TK.shape[1],
        len(tiles),
        len(blocks),
        x_TK.stride(0),
        BIAS=any(projection.bias is not None for projection in projections),
        LORA=_width(packed) > 0,
        ALIGNED=all(entry.aligned for entry in entries),
        GROUP=config.group,
        BM=config.BM,
        BN=config.BN,
        BK=config.BK,
        BR=_chunk(packed, config),
        num_warps=config.warps,
        num_stages=config.stages,
    )
    return ys


def grad_input(
    dy: Sequence[torch.Tensor],
    projections: Projections,
    ds: Sequence[torch.Tensor],
    layout: AdapterLayout,
) -> torch.Tensor:
    """See the part. Where a W's rows are not contiguous, a GEMM each, and their sum."""
    if not _rows_contiguous(projections):
        apart = [
            single_grad_input(dy_TN, weight, ds_TR, layout, adapters)
            for dy_TN, (weight, _, adapters), ds_TR in zip(dy, projections, ds, strict=True)
        ]
        return functools.reduce(torch.Tensor.add_, apart)
    return _grad_input(dy[0], dy, projections, ds, layout)


@on_device
def _grad_input(
    first: torch.Tensor,
    dy: Sequence[torch.Tensor],
    projections: Projections,
    ds: Sequence[torch.Tensor],
    layout: AdapterLayout,
) -> torch.Tensor:
    packed = _packed(first, projections, layout)
    columns = projections[0].weight.shape[1]
    dx_TK = first.new_empty(len(first), columns)
    config = shared_config("shared_grad_input", first)
    tiles = tile_table(layout.segment_starts, config.BM, first.device)
    programs = len(tiles) * -(-columns // config.BN)
    if not programs:
        return dx_TK
    entries = [
        Entry(forms, projection.weight, None, dy_TN, ds_TR, forms.stride_a)
        for forms, projection, dy_TN, ds_TR in zip(packed, projections, dy, ds, strict=True)
    ]
    shared_grad_input_kernel[(programs,)](
        dx_TK,
        entry_table(entries, first.device),
        tiles,
        *row_keys(layout, first.device),
        columns,
        len(tiles),
        len(entries),
        LORA=_width(packed) > 0,
        DROPOUT=any(forms.dropout for forms in packed),
        ALIGNED=all(entry.aligned for entry in entries),
        GROUP=config.group,
        BM=config.BM,
        BN=config.BN,
        BK=config.BK,
        BR=_chunk(packed, config),
        num_warps=config.warps,
        num_stages=config.stages,
    )
    return dx_TK


def grad_a(
    ds: Sequence[torch.Tensor],
    x_TK: torch.Tensor,
    projections: Projections,
    layout: AdapterLayout,
    *,
    slots: Sequence[Collection[int]],
) -> list[dict[int, torch.Tensor]]:
    """See the part. More than three projections take a pass over X for every three."""
    packed = _packed(x_TK, projections, layout)
    config = shared_config("shared_grad_a", x_TK)
    found: list[dict[int, torch.Tensor]] = []
    for some in _slices(len(packed)):
        shares = [
            plan_shares(layout, forms, wanted, columns=x_TK.shape[1], height=config.span)
            for forms, wanted in zip(packed[some], slots[some], strict=True)
        ]
        parts = [ds[0].new_empty(one.shares) for one in shares]
        if any(one.shares for one in shares):
            _grad_a(x_TK, ds[some], packed[some], layout, shares, parts, config)
        found += [_summed(one, part) for one, part in zip(shares, parts, strict=True)]
    return found


@on_device
def _grad_a(
    x_TK: torch.Tensor,
    ds: Sequence[torch.Tensor],
    packed: Sequence[PackedForms],
    layout: AdapterLayout,
    shares: Sequence[Shares],
    parts: Sequence[torch.Tensor],
    config: LaunchConfig,
) -> None:
    """Write each projection's shares of dA into its part."""
    tiles = tile_table(layout.segment_starts, config.span, x_TK.device)
    columns, chunk = x_TK.shape[1], _chunk(packed, config)
    entries = [
        Entry(forms, s=ds_TR, gradient=part)
        for forms, ds_TR, part in zip(packed, ds, parts, strict=True)
    ]
    grid = (len(tiles), -(-columns // config.BK), -(-_width(packed) // chunk))
    shared_grad_a_kernel[grid](
        x_TK,
        entry_table(entries, x_TK.device),
        torch.cat([one.table for one in shares]),
        tiles,
        *row_keys(layout, x_TK.device),
        columns,
        len(layout.segment_slots),
        x_TK.stride(0),
        P=len(entries),
        DROPOUT=any(forms.dropout for forms in packed),
        SPAN=config.span,
        BM=config.BM,
        BK=config.BK,
        BR=chunk,
        num_warps=config.warps,
        num_stages=config.stages,
    )


def shared_config(op: str, tall: torch.Tensor) -> LaunchConfig:
    """What a part is launched with."""
    return default_config(op, tall.dtype, architecture(tall.device))


def column_blocks(widths: Sequence[int], size: int) -> tuple[tuple[int, int], ...]:
    """Projection and first column of every block of columns, side by side."""
    return tuple(
        (number, first) for number, width in enumerate(widths) for first in range(0, width, size)
    )


def _packed(
    tall: torch.Tensor, projections: Projections, layout: AdapterLayout
) -> list[PackedForms]:
    return [pack_for(tall, layout, projection.adapters) for projection in projections]


def _slices(count: int) -> Iterator[slice]:
    for first in range(0, count, MOST):
        yield slice(first, first + MOST)


def _width(packed: Sequence[PackedForms]) -> int:
    return max(forms.width for forms in packed)


def _chunk(packed: Sequence[PackedForms], config: LaunchConfig) -> int:
    return min(max(forms.chunk for forms in packed), config.BR)


def _rows_contiguous(projections: Projections) -> bool:
    return all(projection.weight.stride(1) == 1 for projection in projections)


def _summed(shares: Shares, parts: torch.Tensor) -> dict[int, torch.Tensor]:
    if shares.direct:
        return shares.split(parts, by_rank=True)
    whole = parts.new_empty(shares.elements)
    on_device(sum_parts)(parts, whole, shares.sums)
    return shares.split(whole, by_rank=True)
