"""Cutting, dropping and counting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafusion.data.dataset import Sample, build_dataset, fit
from lorafusion.errors import DataError

MASKS = st.lists(st.booleans(), min_size=1, max_size=30)


def _sample(mask: list[bool]) -> Sample:
    return Sample(np.arange(100, 100 + len(mask), dtype=np.int32), np.asarray(mask))


@given(MASKS, st.integers(1, 32))
def test_fit_keeps_every_target_that_it_can(mask: list[bool], max_seq_len: int) -> None:
    targets = [i for i, trained in enumerate(mask) if trained and 1 <= i < max_seq_len]
    sample = fit(_sample(mask), max_seq_len)
    if not targets:
        assert sample is None
        return
    assert sample is not None
    assert np.flatnonzero(sample.trained).tolist() == targets
    assert sample.input_ids.tolist() == list(range(100, 101 + targets[-1]))


@given(st.lists(MASKS, min_size=1, max_size=12), st.integers(1, 32))
def test_the_report_adds_up(masks: list[list[bool]], max_seq_len: int) -> None:
    fits = [fit(_sample(mask), max_seq_len) for mask in masks]
    whole = [fit(_sample(mask), 10**6) for mask in masks]
    rows = [row for row, sample in enumerate(fits) if sample is not None]
    if not rows:
        with pytest.raises(DataError, match=r"a.jsonl: "):
            build_dataset(map(_sample, masks), path="a.jsonl", max_seq_len=max_seq_len)
        return
    dataset = build_dataset(map(_sample, masks), path="a.jsonl", max_seq_len=max_seq_len)
    report = dataset.report
    assert report.rows == len(masks) == report.kept + report.dropped
    assert dataset.rows.tolist() == rows
    assert len(dataset) == report.kept == len(rows)
    assert report.tokens == dataset.lengths.sum() == len(dataset.input_ids)
    assert report.trained_tokens == dataset.trained_counts.sum() == dataset.trained.sum()
    assert dataset.lengths.max() <= max_seq_len
    assert dataset.trained_counts.min() >= 1
    cut = 0
    for i, row in enumerate(rows):
        sample, one, full = dataset.sample(i), fits[row], whole[row]
        assert one is not None
        assert full is not None
        assert sample.input_ids.tolist() == one.input_ids.tolist()
        assert sample.trained.tolist() == one.trained.tolist()
        assert dataset.trained_counts[i] == one.trained.sum()
        cut += len(one.input_ids) < len(full.input_ids)
    assert report.cut == cut


def test_types_are_those_that_are_promised() -> None:
    dataset = build_dataset([_sample([False, True])], path="a", max_seq_len=8)
    arrays = (dataset.input_ids, dataset.trained, dataset.offsets, dataset.rows)
    assert [array.dtype for array in arrays] == [np.int32, np.bool_, np.int64, np.int64]
    assert dataset.lengths.dtype == dataset.trained_counts.dtype == np.int64


def test_nothing_left_says_what_would_do() -> None:
    samples = [_sample([False] * 9 + [True]), _sample([False] * 6 + [True] * 2)]
    with pytest.raises(DataError, match=r"all 2 rows .*max_seq_len 6 tokens; at least 7 are"):
        build_dataset(samples, path="a", max_seq_len=6)
    assert build_dataset(samples, path="a", max_seq_len=7).rows.tolist() == [1]
    with pytest.raises(DataError, match="none of the 1 rows has a token to train on"):
        build_dataset([_sample([True, False])], path="a", max_seq_len=6)


def test_the_hash_is_of_tokens_and_targets_alone() -> None:
    first = build_dataset([_sample([False, True, True])], path="a", max_seq_len=8)
    same = build_dataset([_sample([False, True, True])], path="b", max_seq_len=9)
    other = build_dataset([_sample([False, False, True])], path="a", max_seq_len=8)
    assert first.content_hash == same.content_hash != other.content_hash
