"""Rows -> jobs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafusion.kernels.layout import AdapterLayout, FusedForm, ModuleAdapters, Segment

# The example in the module's docstring.
EXAMPLE = [Segment(0, 70, 1, [5, 9], [3, 2]), Segment(1, 71, 8, [2], [4])]


def form(dropout: int = 0) -> FusedForm:
    return FusedForm(torch.ones(2, 4), torch.ones(3, 2), 0.5, dropout)


def build(segments, modules=None, *, training=True) -> AdapterLayout:
    return AdapterLayout.build(segments, modules or {}, training=training)


def test_the_worked_example():
    layout = build(EXAMPLE)
    assert layout.segment_starts == (0, 5, 9)
    assert layout.segment_slots == (0, 1)
    assert layout.sample_starts == (0, 3, 5, 9)
    assert layout.row_sample_T.tolist() == [5, 5, 5, 9, 9, 2, 2, 2, 2]
    assert layout.row_position_T.tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3]


def test_each_row_has_the_prefix_of_its_own_job(plain):
    prefixes = [word % 2**64 for word in build(EXAMPLE).row_prefix_T.tolist()]
    assert prefixes == [plain.hash(70, 1)] * 5 + [plain.hash(71, 8)] * 4


def test_row_keys_of_a_part_of_the_rows(plain):
    keys = build(EXAMPLE).row_keys(99, 4, 7).tolist()
    expected = [
        plain.hash(70, 1, 99, 9, 1),
        plain.hash(71, 8, 99, 2, 0),
        plain.hash(71, 8, 99, 2, 1),
    ]
    assert [key % 2**64 for key in keys] == expected


def test_adapted_rows_skips_what_has_no_adapter_here():
    segments = [
        Segment(4, 0, 1, [0], [2]),
        Segment(-1, 0, 1, [0], [3]),
        Segment(2, 0, 1, [], []),
        Segment(7, 0, 1, [0], [1]),
        Segment(0, 0, 1, [0, 1], [0, 4]),
    ]
    forms = {4: form(), 2: form(), 0: form(), 9: form()}
    rows = list(build(segments).adapted_rows(ModuleAdapters(1, forms)))
    assert [(r.slot, r.start, r.stop) for r in rows] == [(4, 0, 2), (0, 6, 10)]
    assert rows[0].form.A is forms[4].A
    assert rows[1].form.A is forms[0].A


@pytest.mark.parametrize(("training", "dropout"), [(True, 300), (False, 0)])
def test_dropout_is_on_in_training_only(training, dropout):
    layout = build([Segment(0, 0, 1, [0], [2])], training=training)
    original = form(300)
    (rows,) = layout.adapted_rows(ModuleAdapters(1, {0: original}))
    assert rows.form == original._replace(dropout=dropout)


def test_a_slot_may_not_come_twice():
    twice = [Segment(3, 0, 1, [0], [2]), Segment(3, 0, 1, [1], [2])]
    with pytest.raises(AssertionError, match=r"two segments: \[3, 3\]"):
        build(twice)


def test_rows_without_a_slot_may_come_twice():
    layout = build([Segment(-1, 0, 1, [0], [2]), Segment(-1, 0, 1, [1], [2])])
    assert layout.segment_slots == (-1, -1)
    assert not list(layout.adapted_rows(ModuleAdapters(1, {0: form()})))


def test_samples_without_lengths_do_not_shift_the_next_job():
    # The totals agree: only the look at each segment finds it.
    with pytest.raises(AssertionError, match="2 samples, but 1 lengths"):
        build([Segment(0, 0, 1, [5, 9], [3]), Segment(1, 0, 1, [2], [4, 1])])


def test_nothing_at_all():
    layout = build([])
    assert layout.segment_starts == layout.sample_starts == (0,)
    assert layout.row_sample_T.shape == (0,)
    assert layout.row_keys(1, 0, 0).shape == (0,)


def test_layout_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        build(EXAMPLE).training = False


@given(
    parts=st.lists(
        st.lists(st.tuples(st.integers(0, 99), st.integers(0, 5)), max_size=4), max_size=5
    )
)
@settings(max_examples=60, deadline=None)
def test_rows_of_any_segments(parts):
    layout = build(
        [
            Segment(slot, slot, 1, [sample for sample, _ in part], [n for _, n in part])
            for slot, part in enumerate(parts)
        ]
    )
    flat = [pair for part in parts for pair in part]
    assert layout.row_sample_T.tolist() == [s for s, n in flat for _ in range(n)]
    assert layout.row_position_T.tolist() == [i for _, n in flat for i in range(n)]
    assert layout.sample_starts == tuple(sum(n for _, n in flat[:i]) for i in range(len(flat) + 1))
    totals = [sum(n for _, n in part) for part in parts]
    assert layout.segment_starts == tuple(sum(totals[:i]) for i in range(len(parts) + 1))
