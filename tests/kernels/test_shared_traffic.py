"""Bytes of linears that share their input, by the formulas that a reader would write down."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorafusion.bench import layer_bytes, pages
from lorafusion.bench.layer_bytes import APART, GROUPS, MERGED, OURS, PAPER, PEFT, PEFT_ONE
from lorafusion.kernels.launch_configs import LaunchConfig
from lorafusion.kernels.shared_traffic import shared_compulsory, shared_issued
from lorafusion.kernels.traffic import Shape, compulsory, issued

M, D, N, R = 8192, 4096, (4096, 1024, 1024), 16
SHAPES = [Shape.even(M, D, width) for width in N]
X, Y, W, S = 2 * M * D, 2 * M * sum(N), 2 * D * sum(N), 3 * 4 * M * R
A, B = 3 * 4 * 2 * D * R, 4 * 2 * sum(N) * R
PAGE = Path(__file__).parents[2] / "docs" / "kernels.md"


@pytest.mark.parametrize(
    ("op", "loads", "stores"),
    [
        ("down", X + A, S),
        ("up", X + W + S + B, Y),
        ("grad_input", Y + W + S + A, X),
        ("grad_a", X + S, 2 * A),
    ],
)
def test_x_is_read_and_dx_written_once(op, loads, stores):
    found = shared_compulsory(op, SHAPES)
    assert (found.stores, found.adds) == (stores, 0)
    # Row keys and tables: 16 bytes a row of 8 KB, of dX's for each projection.
    assert loads <= found.loads <= 1.005 * loads


@pytest.mark.parametrize("op", ["down", "up", "grad_input", "grad_a"])
def test_one_linear_moves_what_the_single_op_moves(op):
    found, single = shared_compulsory(op, SHAPES[:1]), compulsory(op, SHAPES[0])
    assert found.stores == single.stores
    assert abs(found.loads - single.loads) <= 1000, "tables"
    config = LaunchConfig(BM=64, BN=128, BK=64, span=256)
    found, single = shared_issued(op, SHAPES[:1], config), issued(op, SHAPES[0], config)
    assert found.total == pytest.approx(single.total, rel=0.02)


def test_more_than_three_are_cut():
    four = [Shape.even(M, D, 1024)] * 4
    config = LaunchConfig(BM=64, BK=64)
    parts = [shared_issued("down", some, config) for some in (four[:3], four[3:])]
    assert shared_issued("down", four, config) == parts[0] + parts[1]


def test_a_layer_by_hand():
    """In units of 8192 x 1024 elements; W of 4096 x 4096 is two."""
    unit = 2 * M * 1024
    large = {  # x, y, mask and w of each linear, without what is as small as a rank
        PAPER: sum(
            6 * x + 3 * y + x + 2 * (x * y / 8)
            for x, y in [(4, 4), (4, 1), (4, 1), (4, 4), (4, 14), (4, 14), (14, 4)]
        ),
        MERGED: sum(
            6 * x + 3 * y + x + 2 * (x * y / 8)
            for x, y in [(4, 6), (4, 4), (4, 14), (4, 14), (14, 4)]
        ),
        APART: sum(
            4 * x + 3 * y + 2 * (x * y / 8)
            for x, y in [(4, 4), (4, 1), (4, 1), (4, 4), (4, 14), (4, 14), (14, 4)]
        ),
        OURS: sum(4 * x + 3 * y + 2 * (x * y / 8) for x, y in [(4, 6), (4, 4), (4, 28), (14, 4)]),
        PEFT_ONE: sum(
            12 * x + 12 * y + x + 2 * (x * y / 8)
            for x, y in [(4, 4), (4, 1), (4, 1), (4, 4), (4, 14), (4, 14), (14, 4)]
        ),
    }
    for way, units in large.items():
        assert layer_bytes.total(way) == pytest.approx(units * unit, rel=0.02), way
    weights = 2 * 3 * sum(group.K * width for group in GROUPS for width in group.widths) * 2
    more = layer_bytes.total(PEFT) - layer_bytes.total(PEFT_ONE)
    assert more == pytest.approx(weights, rel=0.05), "PEFT reads W again for every job"


def test_a_layer_keeps_its_bounds():
    ours = layer_bytes.total(OURS)
    assert ours <= 0.67 * layer_bytes.total(PAPER)
    assert ours <= 0.77 * layer_bytes.total(MERGED)
    assert ours <= 0.29 * layer_bytes.total(PEFT_ONE) <= 0.29 * layer_bytes.total(PEFT)


def test_the_page_holds_what_the_code_counts():
    assert pages.found_in(PAGE, layer_bytes.MARKS) == layer_bytes.markdown()


def test_the_plot(tmp_path):
    layer_bytes.draw(tmp_path / "layer.png")
    assert (tmp_path / "layer.png").read_bytes()[:4] == b"\x89PNG"
