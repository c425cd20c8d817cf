"""The dropout mask: golden vectors, edges, statistics, and the same wherever its rows lie."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafusion.kernels.dropout import keep_mask, rescale, threshold
from lorafusion.kernels.hashing import hash64, module_key, signed
from lorafusion.kernels.layout import AdapterLayout, Segment

Q_PROJ = "model.layers.0.self_attn.q_proj"
# p = 0.25, job seed 7, step 1, module Q_PROJ, sample 5, positions 0 to 2; '#' is kept.
GOLDEN_MASK = ["#..###.#######.#.###.###", ".#.#.##.##.#.#.######.##", "###..##..###.##.####.###"]
ROWS, COLUMNS = 2048, 256


def mask(rows=ROWS, columns=COLUMNS, *, p, seed=7, step=1, module=Q_PROJ, sample=5):
    """The mask of one sample of ``rows`` tokens, by way of the layout."""
    layout = AdapterLayout.build([Segment(0, seed, step, [sample], [rows])], {}, training=True)
    return keep_mask(layout.row_keys(module_key(module), 0, rows), columns, threshold(p))


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of two masks, in units of its sigma 1/sqrt(n) for independent ones."""
    a, b = a.flatten().double(), b.flatten().double()
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b) / (a.norm() * b.norm()) * math.sqrt(a.numel()))


# --- the definition


def test_golden_mask():
    found = ["".join(".#"[k] for k in row) for row in mask(3, 24, p=0.25).tolist()]
    assert found == GOLDEN_MASK


def test_golden_lanes_of_key_zero():
    # Row key 0 makes the groups the published outputs of SplitMix64 for seed 0:
    # e220a8397b1dcdaf, 6e789e6aa1b965f4. A lane is kept iff it reaches the threshold itself.
    lanes = [0xCDAF, 0x7B1D, 0xA839, 0xE220, 0x65F4, 0xA1B9, 0x9E6A, 0x6E78]
    key = torch.zeros(1, dtype=torch.int64)
    for column, lane in enumerate(lanes):
        assert keep_mask(key, 8, lane)[0, column]
        assert not keep_mask(key, 8, lane + 1)[0, column]


@given(key=st.integers(0, 2**64 - 1), columns=st.integers(1, 40), t=st.integers(0, 65535))
@settings(max_examples=100, deadline=None)
def test_mask_is_the_one_in_plain_ints(key, columns, t, plain):
    found = keep_mask(torch.tensor([signed(key)]), columns, t)
    assert found.dtype == torch.bool
    assert found.tolist() == [plain.keep(key, columns, t)]


@pytest.mark.parametrize("columns", range(1, 10))
def test_narrow_masks_are_the_wide_one_cut(columns):
    assert torch.equal(mask(50, columns, p=0.4), mask(50, 64, p=0.4)[:, :columns])


def test_no_rows_or_no_columns():
    none = torch.zeros(0, dtype=torch.int64)
    assert keep_mask(none, 3, 9).shape == (0, 3)
    assert keep_mask(none, 5, 9).shape == (0, 5)
    assert keep_mask(torch.zeros(3, dtype=torch.int64), 0, 9).shape == (3, 0)


# --- thresholds


@pytest.mark.parametrize(
    ("p", "t"),
    [(0.0, 0), (1e-6, 0), (1e-5, 1), (0.05, 3277), (0.1, 6554), (0.5, 32768), (0.99999, 65535)],
)
def test_threshold_is_p_in_steps_of_1_65536(p, t):
    assert threshold(p) == t
    assert rescale(t) == 1 / (1 - t / 65536)


def test_certain_dropout_stays_finite():
    assert threshold(1.0) == 65535
    assert rescale(threshold(1.0)) == 65536


def test_threshold_zero_keeps_everything():
    assert mask(p=0.0).all()


@pytest.mark.parametrize("p", [1e-5, 0.05, 0.5, 0.9, 0.99999])
def test_mean_of_the_whole_mask(p):
    exact = threshold(p) / 65536
    kept = mask(ROWS, 1024, p=p)
    sigma = math.sqrt(exact * (1 - exact) / kept.numel())
    assert abs(kept.double().mean() - (1 - exact)) < 4.5 * sigma
    # So the dropped input has the input's expectation.
    assert abs(kept.double().mean() * rescale(threshold(p)) - 1) < 4.5 * sigma / (1 - exact)


# --- statistics: bounds are those of independent binomial draws


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("axis", [0, 1])
def test_means_of_rows_and_columns(p, axis):
    q = 1 - threshold(p) / 65536
    kept = mask(p=p).double()
    z = (kept.mean(axis) - q) / math.sqrt(q * (1 - q) / kept.shape[axis])
    # The largest of 2048 normal draws exceeds 5 sigma with probability 0.001.
    assert z.abs().max() < 5
    # Their spread is a binomial's: mean z² is 1 with sigma sqrt(2/n). Rows (columns) that
    # resemble each other, or themselves, would widen it; quotas would narrow it.
    assert abs(z.square().mean() - 1) < 4.5 * math.sqrt(2 / len(z))


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("lag", [1, 2, 3, 4, 5, 8])
def test_neighbouring_rows_and_columns_are_uncorrelated(p, lag):
    kept = mask(p=p)
    assert abs(correlation(kept[lag:], kept[:-lag])) < 4.5
    assert abs(correlation(kept[:, lag:], kept[:, :-lag])) < 4.5


@pytest.mark.parametrize("column", range(4))
def test_columns_of_a_group_and_across_groups_are_uncorrelated(column):
    groups = mask(p=0.5).view(ROWS, -1, 4)
    for other in range(4):
        if other != column:
            assert abs(correlation(groups[..., column], groups[..., other])) < 4.5
        assert abs(correlation(groups[:, 1:, column], groups[:, :-1, other])) < 4.5


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 8},
        {"step": 2},
        {"sample": 6},
        {"module": "model.layers.1.self_attn.q_proj"},
        {"module": "model.layers.0.self_attn.k_proj"},
        {"seed": 1, "step": 7},
        {"step": 5, "sample": 1},
    ],
    ids=str,
)
def test_other_jobs_steps_samples_and_modules_are_uncorrelated(other):
    for p in (0.1, 0.5):
        assert abs(correlation(mask(p=p), mask(p=p, **other))) < 4.5


# --- the same wherever the rows lie

SEGMENT = st.builds(
    lambda seed, step, parts: (seed, step, tuple(parts)),
    st.integers(0, 2**32),
    st.integers(1, 10**6),
    st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 6)), max_size=4),
)


@given(
    segments=st.lists(SEGMENT, min_size=1, max_size=5), columns=st.integers(1, 9), data=st.data()
)
@settings(max_examples=60, deadline=None)
def test_mask_of_a_sample_is_the_same_packed_anywhere(segments, columns, data):
    order = data.draw(st.permutations(range(len(segments))))
    slots = data.draw(st.permutations(range(len(segments))))
    layout = AdapterLayout.build(
        [
            Segment(
                slots[i],
                segments[i][0],
                segments[i][1],
                [sample for sample, _ in segments[i][2]],
                [length for _, length in segments[i][2]],
            )
            for i in order
        ],
        {},
        training=True,
    )
    key, row = module_key(Q_PROJ), 0
    for i in order:
        seed, step, parts = segments[i]
        for sample, length in parts:
            packed = keep_mask(layout.row_keys(key, row, row + length), columns, 20000)
            single = AdapterLayout.build(
                [Segment(0, seed, step, [sample], [length])], {}, training=True
            )
            alone = keep_mask(single.row_keys(key, 0, length), columns, 20000)
            assert torch.equal(packed, alone)
            row += length
    assert row == layout.segment_starts[-1]


def test_a_longer_sample_keeps_the_mask_of_its_beginning():
    assert torch.equal(mask(9, 16, p=0.3), mask(30, 16, p=0.3)[:9])


def test_row_key_is_the_hash_of_its_five_words(plain):
    layout = AdapterLayout.build([Segment(0, 7, 1, [5], [3])], {}, training=True)
    keys = [key % 2**64 for key in layout.row_keys(module_key(Q_PROJ), 0, 3).tolist()]
    assert keys == [0x0F21354BBE6F1E0D, 0xFBF6B8959DB5E6BD, 0xD448823E6DF32F69]
    assert keys == [hash64(7, 1, module_key(Q_PROJ), 5, position) for position in range(3)]
    assert keys == [plain.hash(7, 1, plain.module(Q_PROJ), 5, position) for position in range(3)]
