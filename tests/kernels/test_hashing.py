"""SplitMix64 against its published outputs, and the tensor form against plain ints."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafusion.kernels.hashing import (
    GOLDEN,
    MASK64,
    finalise_,
    fold,
    hash64,
    module_key,
    signed,
)

WORD = st.integers(0, MASK64)
# The first five outputs of the generator as published, for seeds 0 and 1234567.
SPLITMIX_0 = [
    0xE220A8397B1DCDAF,
    0x6E789E6AA1B965F4,
    0x06C45D188009454F,
    0xF88BB8A8724C81EC,
    0x1B39896A51A8749B,
]
SPLITMIX_1234567 = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


def unsigned(words: torch.Tensor) -> list[int]:
    return [word & MASK64 for word in words.tolist()]


@pytest.mark.parametrize(("seed", "outputs"), [(0, SPLITMIX_0), (1234567, SPLITMIX_1234567)])
def test_finalise_gives_the_published_splitmix64(seed, outputs, plain):
    states = [(seed + i * GOLDEN) & MASK64 for i in range(1, 6)]
    assert unsigned(finalise_(torch.tensor([signed(state) for state in states]))) == outputs
    assert [plain.splitmix(state) for state in states] == outputs
    assert hash64(seed) == outputs[0]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), 0),
        ((0,), 0xE220A8397B1DCDAF),
        ((7,), 0x63CBE1E459320DD7),
        ((7, 1), 0x3D41BF495CD3075F),
        ((1, 7), 0x7716DA39CBA275B2),
        ((-1,), 0xE4D971771B652C20),
        ((MASK64,), 0xE4D971771B652C20),
        ((7, 1, 0x482FF96ED4D5AF8F, 5, 0), 0x0F21354BBE6F1E0D),
    ],
)
def test_hash64_golden(words, expected, plain):
    assert hash64(*words) == expected == plain.hash(*words)


def test_module_key_golden():
    assert module_key("model.layers.0.self_attn.q_proj") == 0x482FF96ED4D5AF8F
    assert module_key("model.layers.1.self_attn.q_proj") != 0x482FF96ED4D5AF8F


@given(words=st.lists(WORD, max_size=5))
@settings(max_examples=100, deadline=None)
def test_hash64_is_the_fold_of_its_words(words, plain):
    state = torch.zeros(1, dtype=torch.int64)
    for i, word in enumerate(words):
        state = fold(state, word if i % 2 else torch.tensor([signed(word)]))
    assert unsigned(state) == [hash64(*words)] == [plain.hash(*words)]


def test_fold_broadcasts_and_leaves_its_inputs():
    state, words = torch.tensor([[3], [-4]]), torch.tensor([0, 1, -1])
    folded = fold(state, words)
    assert state.tolist() == [[3], [-4]]
    assert words.tolist() == [0, 1, -1]
    expected = [[(s ^ w) + GOLDEN & MASK64 for w in (0, 1, -1)] for s in (3, -4)]
    finalised = finalise_(torch.tensor([[signed(z) for z in row] for row in expected]))
    assert torch.equal(folded, finalised)


@given(words=st.lists(WORD, min_size=1, max_size=9))
@settings(max_examples=100, deadline=None)
def test_finalise_on_tensors_is_the_one_on_ints(words, plain):
    z = torch.tensor([signed(word) for word in words])
    finalised = finalise_(z)
    assert finalised is z, "in place"
    assert unsigned(z) == [plain.splitmix(word) for word in words]


@given(word=WORD)
@settings(max_examples=50, deadline=None)
def test_signed_keeps_the_bits(word):
    assert -(1 << 63) <= signed(word) < 1 << 63
    assert signed(word) & MASK64 == word


def test_one_flipped_bit_flips_half_of_the_hash():
    flips = [
        (hash64(11, word) ^ hash64(11, word ^ 1 << bit)).bit_count()
        for word in range(20)
        for bit in range(64)
    ]
    # 1280 draws of Binomial(64, 1/2): sigma of the mean is 4/sqrt(1280) = 0.11.
    assert abs(sum(flips) / len(flips) - 32) < 5 * 0.112
    assert min(flips) >= 10, "ten bits is 5.5 sigma below the mean"
