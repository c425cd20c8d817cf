"""Bytes and operations by the formulas that a reader would write down."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from lorafusion.bench import pages, traffic_table
from lorafusion.kernels.launch_configs import OPS, LaunchConfig
from lorafusion.kernels.traffic import (
    SegmentShape,
    Shape,
    compulsory,
    flops,
    issued,
    unfused,
)

M, D, R = 8192, 4096, 16
SHAPE = Shape.even(M, D, D)
X, W, S = 2 * M * D, 2 * D * D, 4 * M * R
FACTORS = 4 * 2 * D * R  # four jobs' A or B, in 16 bits
GRADIENTS = 2 * FACTORS  # in 32


@pytest.mark.parametrize(
    ("op", "loads", "stores"),
    [
        ("down", X + FACTORS, S),
        ("up", X + W + S + FACTORS, X),
        ("grad_down", X + S + FACTORS, S + GRADIENTS),
        ("grad_input", X + W + S + FACTORS, X),
        ("grad_a", X + S, GRADIENTS),
    ],
)
def test_compulsory_bytes_are_each_operand_once(op, loads, stores):
    found = compulsory(op, SHAPE)
    assert (found.stores, found.adds) == (stores, 0)
    # Row keys and tables: 16 bytes a row of 8 KB.
    assert loads <= found.loads <= 1.003 * loads


def test_separate_operations():
    mask, s, factors = M * D, 2 * M * R, FACTORS
    forward, backward = unfused(SHAPE, backward=False), unfused(SHAPE, backward=True)
    # Four jobs one after another read the weight four times.
    assert forward == 4 * X + 7 * X + mask + 4 * W + 2 * s + 2 * factors
    assert backward == 8 * X + 5 * X + mask + 4 * W + 4 * s + 4 * factors
    dry = dataclasses.replace(SHAPE, dropout=False)
    assert forward - unfused(dry, backward=False) == 2 * X + mask


def test_flops():
    base = 2 * M * D * D
    lora = 2 * M * D * R
    assert [flops(op, SHAPE) for op in OPS] == [lora, base + lora, 2 * lora, base + lora, lora]
    frozen = Shape([SegmentShape(M, R, wanted=False), SegmentShape(5, 0)], D, D)
    assert flops("grad_a", frozen) == 0
    assert flops("grad_down", frozen) == lora


def test_taller_tiles_read_the_weight_less_often():
    low = issued("up", SHAPE, LaunchConfig(BM=64, BN=128, BK=64))
    high = issued("up", SHAPE, LaunchConfig(BM=128, BN=128, BK=64))
    assert low.loads - high.loads == pytest.approx(64 * W, rel=1e-2)


def test_nothing_to_do():
    for op in OPS:
        config = LaunchConfig(BM=16, BN=16, BK=16, span=16)
        assert issued(op, Shape([], D, D), config).total == 0
        assert compulsory(op, Shape([SegmentShape(0, 4)], D, D)).total == 0


def test_the_page_holds_what_the_code_counts():
    page = Path(__file__).parents[2] / "docs" / "kernels.md"
    assert pages.found_in(page, traffic_table.MARKS) == traffic_table.markdown()
