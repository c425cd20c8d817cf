"""The mask that the Triton kernels make again: bit for bit the one of dropout.py, everywhere.

Each kernel that drops elements is given inputs that make its output the mask itself.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.kernels.interpreter import require_interpreter

require_interpreter()

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from lorafusion.kernels.down.triton import down  # noqa: E402
from lorafusion.kernels.dropout import keep_mask, rescale, threshold  # noqa: E402
from lorafusion.kernels.grad_a.triton import grad_a  # noqa: E402
from lorafusion.kernels.grad_input.triton import grad_input  # noqa: E402
from lorafusion.kernels.hashing import module_key  # noqa: E402
from lorafusion.kernels.launch_configs import LaunchConfig  # noqa: E402
from lorafusion.kernels.layout import AdapterLayout, FusedForm, ModuleAdapters, Segment  # noqa: E402
from lorafusion.kernels.lora_linear import lora_linear  # noqa: E402

Q_PROJ = "model.layers.0.self_attn.q_proj"
GOLDEN_MASK = ["#..###.#######.#.###.###", ".#.#.##.##.#.#.######.##", "###..##..###.##.####.###"]
TILES = [(16, 16), (16, 64), (64, 32), (128, 256)]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])


def masks(segments, columns, dtype, BM, BC):
    """What down, grad_a and grad_input keep of [T, columns], by job: (slot, p, seed, samples)."""
    layout = AdapterLayout.build(
        [
            Segment(slot, seed, 1, [sample for sample, _ in samples], [n for _, n in samples])
            for slot, _, seed, samples in segments
        ],
        {},
        training=True,
    )
    rows = layout.segment_starts[-1]
    lengths = dict(zip(layout.segment_slots, np.diff(layout.segment_starts), strict=True))

    def adapters(make_a, make_b):
        forms = {
            slot: FusedForm(make_a(slot), make_b(slot), 1.0, threshold(p))
            for slot, p, *_ in segments
        }
        return ModuleAdapters(module_key(Q_PROJ), forms)

    def pairs(slot):  # a rank that grad_a's rows each have a column of dS in
        return torch.zeros(lengths[slot], columns)

    x = torch.ones(rows, columns, dtype=dtype)
    unit = adapters(lambda _: torch.eye(columns), lambda _: torch.zeros(8, columns))
    config = LaunchConfig(BM=BM, BN=BC, BK=BC, span=2 * BM)
    kept = {"down": down(x, layout, unit, config=config)[:, :columns]}

    each_row = adapters(pairs, lambda slot: torch.zeros(8, lengths[slot]))
    ds = torch.zeros(rows, max(lengths.values()))
    for start, length in zip(layout.segment_starts[:-1], lengths.values(), strict=True):
        ds[start : start + length, :length] = torch.eye(length)
    da = grad_a(ds, x, layout, each_row, slots=list(lengths), config=config)
    kept["grad_a"] = torch.cat([da[slot] for slot in lengths if slot in da])

    one = adapters(lambda _: torch.ones(1, columns), lambda _: torch.zeros(8, 1))
    dy, weight = torch.zeros(rows, 8, dtype=dtype), torch.zeros(8, columns, dtype=dtype)
    kept["grad_input"] = grad_input(dy, weight, torch.ones(rows, 1), layout, one, config=config)

    expected = torch.cat(
        [
            keep_mask(layout.row_keys(module_key(Q_PROJ), start, stop), columns, threshold(p))
            for (_, p, *_), start, stop in zip(
                segments, layout.segment_starts[:-1], layout.segment_starts[1:], strict=True
            )
        ]
    )
    scales = torch.cat(
        [
            torch.full((lengths[slot], 1), rescale(threshold(p)), dtype=torch.float64)
            for slot, p, *_ in segments
        ]
    )
    return kept, expected, scales


@DTYPES
@pytest.mark.parametrize(("BM", "BC"), TILES)
def test_masks_are_the_same_bits(dtype, BM, BC):
    segments = [
        (4, 0.25, 7, [(5, 20), (9, 1)]),
        (0, 0.0, 1, [(5, 3)]),
        (2, 0.5, 2**63 + 11, [(2**40, 18)]),
        (1, 0.999, 3, [(0, 9)]),
    ]
    kept, expected, scales = masks(segments, 62, dtype, BM, BC)
    for op, mask in kept.items():
        assert torch.equal(mask != 0, expected), op
        # Kept elements are all rescaled alike: in float32, then rounded to the output's dtype.
        rounded = (expected * scales).float().to(mask.dtype)
        assert torch.equal(mask, rounded), op


def test_golden_mask():
    kept, _, _ = masks([(3, 0.25, 7, [(5, 3)])], 24, torch.float32, 16, 16)
    for op, mask in kept.items():
        assert ["".join(".#"[k] for k in row) for row in (mask != 0).tolist()] == GOLDEN_MASK, op


def test_a_lane_at_the_threshold_is_kept(plain):
    key = plain.hash(7, 1, plain.module(Q_PROJ), 5, 0)
    z = plain.splitmix((key + 0x9E3779B97F4A7C15) % 2**64)
    for column in range(4):
        lane = z >> 16 * column & 0xFFFF
        for t, kept in ((lane, True), (lane + 1, False)):
            found, _, _ = masks([(0, t / 65536, 7, [(5, 1)])], 16, torch.float32, 16, 16)
            for op, mask in found.items():
                assert bool(mask[0, column] != 0) == kept, op


def test_packed_anywhere():
    # The same samples of the same job: alone, and as another slot between two neighbours.
    job = (7, [(5, 11), (2, 6)])
    alone, _, _ = masks([(0, 0.3, *job)], 40, torch.float32, 64, 64)
    packed, _, _ = masks(
        [(2, 0.1, 9, [(5, 13)]), (5, 0.3, *job), (0, 0.3, 8, [(5, 4)])], 40, torch.float32, 16, 32
    )
    for op in alone:
        assert torch.equal(alone[op] != 0, packed[op][13:30] != 0), op


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_backends_drop_the_same_elements(monkeypatch, backend):
    monkeypatch.setenv("LORAFUSION_BACKEND", backend)
    layout = AdapterLayout.build([Segment(0, 7, 1, [5], [3])], {}, training=True)
    form = FusedForm(torch.eye(24), torch.eye(24), 1.0, threshold(0.25))
    y = lora_linear(
        torch.ones(3, 24),
        torch.zeros(24, 24),
        None,
        layout,
        ModuleAdapters(module_key(Q_PROJ), {0: form}),
    )
    assert ["".join(".#"[k] for k in row) for row in (y != 0).tolist()] == GOLDEN_MASK


# --- the canary of the repaired interpreter


@triton.jit
def canary_kernel(p_a, p_b, p_dot, p_cast, p_sum, p_order, SIZE: tl.constexpr):
    o = tl.arange(0, SIZE)
    o_2d = o[:, None] * SIZE + o[None, :]
    b_a, b_b = tl.load(p_a + o_2d), tl.load(p_b + o_2d)
    tl.store(p_dot + o_2d, tl.dot(b_a, b_b))
    tl.store(p_cast + o_2d, (b_a.to(tl.float32) * 1.1).to(tl.bfloat16))
    tl.store(p_sum + o_2d, b_a * b_b + b_a)
    tl.store(p_order + o_2d, (b_a > b_b).to(tl.int32))


def test_canary_of_bfloat16():
    # If this fails, triton's interpreter has changed: mend interpreter.py before all else.
    a, b = (torch.randn(32, 32, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    a, b = a.bfloat16(), b.bfloat16()
    product, cast, total = torch.empty(32, 32), torch.empty_like(a), torch.empty_like(a)
    order = torch.empty(32, 32, dtype=torch.int32)
    canary_kernel[(1,)](a, b, product, cast, total, order, SIZE=32)
    torch.testing.assert_close(product, a.float() @ b.float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(cast, (a.float() * 1.1).bfloat16())
    assert torch.equal(total, (a * b) + a)
    assert torch.equal(order.bool(), a > b)
