"""The tables that the GPU kernels read: tiles of ragged rows, packed forms, places of gradients."""

from __future__ import annotations

import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorafusion.errors import KernelError
from lorafusion.kernels import packed as packed_forms
from lorafusion.kernels.gradients import plan_shares
from lorafusion.kernels.launch_configs import (
    OPS,
    LaunchConfig,
    default_config,
    rank_chunk,
)
from lorafusion.kernels.packed import pack, row_keys
from lorafusion.kernels.tiles import tile_rows, tile_table

CPU = torch.device("cpu")


def test_the_example():
    rows = [(0, 0, 32), (0, 32, 32), (0, 64, 6), (2, 70, 3)]
    assert tile_rows((0, 70, 70, 73), 32) == rows
    assert tile_table((0, 70, 70, 73), 32, CPU).tolist() == [[*row, 0] for row in rows]
    assert tile_table((0, 0), 32, CPU).shape == (0, 4)


@given(lengths=st.lists(st.integers(0, 100), max_size=8), height=st.integers(1, 64))
def test_every_row_is_in_one_tile_of_its_own_segment(lengths, height):
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    covered = []
    for segment, row, rows in tile_rows(tuple(starts), height):
        assert 1 <= rows <= height
        assert starts[segment] <= row
        assert row + rows <= starts[segment + 1]
        assert (row - starts[segment]) % height == 0
        covered += range(row, row + rows)
    assert covered == list(range(starts[-1]))


@pytest.mark.parametrize(
    ("rank", "chunk"), [(1, 16), (16, 16), (17, 32), (64, 64), (65, 64), (130, 64)]
)
def test_chunk(rank, chunk):
    assert rank_chunk(rank) == chunk


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_default_configs_are_what_the_kernels_take(op, arch, dtype):
    config = default_config(op, dtype, arch)
    assert isinstance(config, LaunchConfig)
    for size in (config.BM, config.BN or 16, config.BK or 16, config.span or 16):
        assert size >= 16
        assert size & (size - 1) == 0
    if op == "grad_down":
        assert config.span % config.BN == 0
    if op == "grad_a":
        assert config.span % config.BM == 0
    assert not config.tma or arch in ("sm_90", "sm_100")


# --- packed forms


def test_the_table_of_forms(packed):
    case = packed.to(torch.bfloat16, torch.float32)
    forms = pack(case.layout(), case.adapters, case.x)
    assert forms.ranks == (3, 0, 8, 0, 1)
    assert (forms.width, forms.chunk, forms.dropout) == (16, 16, True)
    by_address = {factor.data_ptr(): factor for factor in forms.factors}
    for job, row in zip(case.jobs, forms.table.tolist(), strict=True):
        if job.rank is None:
            assert row == [0] * packed_forms.COLUMNS
            continue
        a, b, rank, threshold, scale, rescale, key, _ = row
        A, B = case.factors[job.slot]
        for address, factor in ((a, A), (b, B.T)):
            assert address % 16 == 0
            cast = by_address[address]
            assert torch.equal(cast, factor.bfloat16())
            assert cast.stride() == (16, 1)
        assert (rank, threshold) == (job.rank, round(job.p * 65536))
        assert struct.unpack("<2f", struct.pack("<2i", scale, rescale)) == pytest.approx(
            (job.scale, 1 / (1 - job.p)), rel=1e-4
        )
        assert key % 2**64 == case.adapters.key
    assert (forms.stride_a, forms.stride_b) == (16, 16)


def test_dropout_off(packed):
    case = packed.to(torch.float32)
    assert not pack(case.layout(training=False), case.adapters, case.x).dropout


def test_forms_are_packed_again_when_a_factor_changes(packed):
    case = packed.to(torch.float32)
    layout, adapters = case.layout(), case.adapters
    first = pack(layout, adapters, case.x)
    assert pack(layout, adapters, case.x) is first
    with torch.no_grad():
        case.factors[3][0].mul_(2)
    again = pack(layout, adapters, case.x)
    assert again is not first
    assert torch.equal(again.factors[0], 2 * first.factors[0])
    assert pack(layout, adapters, case.x.bfloat16()).factors[0].dtype == torch.bfloat16
    assert pack(layout, case.adapters, case.x) is not again, "another call's forms"


def test_float64_is_refused(packed):
    with pytest.raises(KernelError, match="bfloat16, float16 and float32, not float64"):
        pack(packed.layout(), packed.adapters, packed.x)


def test_row_keys_move_once(packed):
    layout = packed.layout()
    assert row_keys(layout, CPU)[0] is layout.row_prefix_T
    meta = torch.device("meta")
    assert row_keys(layout, meta).sample.device == meta
    assert row_keys(layout, meta)[1] is row_keys(layout, meta)[1]


# --- places of gradients


def test_shares_lie_side_by_side(packed):
    case = packed.to(torch.float32)  # slots 3, -1, 0, 6, 1 of 6, 3, 1, 2, 8 rows
    layout = case.layout()
    forms = pack(layout, case.adapters, case.x)
    shares = plan_shares(layout, forms, [3, 1, 6, 99], columns=10, height=4)
    assert shares.slots == (3, 1)
    # Two tiles of 3·10 elements, then two of 1·10.
    assert shares.sums == ((0, 0, 2, 30), (60, 30, 2, 10))
    assert (shares.shares, shares.elements, shares.direct) == (80, 40, False)
    assert shares.table.tolist() == [
        [0, 0, 30, 0],
        [6, -1, 0, 0],
        [9, -1, 0, 0],
        [10, -1, 0, 0],
        [12, 60, 10, 0],
    ]
    flat = torch.arange(40)
    assert shares.split(flat, by_rank=True)[3].shape == (3, 10)
    assert shares.split(flat, by_rank=False)[1].tolist() == [[30 + i] for i in range(10)]


def test_a_segment_of_one_tile_needs_no_sum(packed):
    case = packed.to(torch.float32)
    layout = case.layout()
    forms = pack(layout, case.adapters, case.x)
    assert plan_shares(layout, forms, [3, 1], columns=10, height=8).direct
    added = plan_shares(layout, forms, [3, 1], columns=10, height=4, split=False)
    assert added.direct
    assert [row[2] for row in added.table.tolist()] == [0] * 5, "all tiles add to one place"
