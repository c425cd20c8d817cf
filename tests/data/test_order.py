"""Orders are pure functions of the seed, fair, and never change between versions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafusion.data.order import BatchOrder, epoch_order, split_held_out
from lorafusion.errors import DataError

GOLDEN = (
    [6, 3, 1, 5, 4, 0, 8, 2, 7, 9],
    [5, 4, 1, 7, 8, 9, 3, 6, 2, 0],
    [0, 6, 8, 9, 7, 2, 3, 5, 4, 1],
    [1, 2, 7],
)


def test_golden_values() -> None:
    """A change here changes every user's training: raise the checkpoint's format with it."""
    assert epoch_order(10, seed=0, epoch=0).tolist() == GOLDEN[0]
    assert epoch_order(10, seed=0, epoch=1).tolist() == GOLDEN[1]
    assert epoch_order(10, seed=7, epoch=0).tolist() == GOLDEN[2]
    assert split_held_out(10, val_size=3, seed=0)[1].tolist() == GOLDEN[3]


@given(st.integers(0, 200), st.integers(-(2**70), 2**70), st.integers(0, 1000))
def test_an_order_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    order = epoch_order(n, seed=seed, epoch=epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))
    assert order.tolist() == epoch_order(n, seed=seed, epoch=epoch).tolist()


def test_every_row_is_as_likely_at_every_place() -> None:
    n, trials = 8, 4000
    counts = np.zeros((n, n))
    for seed in range(trials // 2):
        for epoch in range(2):
            counts[np.arange(n), epoch_order(n, seed=seed, epoch=epoch)] += 1
    # Chi-square with (n-1)^2 = 49 degrees of freedom: 99.99 % lie below 95.
    expected = trials / n
    assert ((counts - expected) ** 2 / expected).sum() < 95


def test_neighbouring_seeds_and_epochs_are_unrelated() -> None:
    n = 2000
    orders = [epoch_order(n, seed=s, epoch=e) for s in (0, 1, 2) for e in (0, 1, 2)]
    for i, first in enumerate(orders):
        assert abs(np.corrcoef(first, np.arange(n))[0, 1]) < 0.1
        for second in orders[:i]:
            assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
            assert (first == second).mean() < 0.01


@given(st.integers(1, 300), st.integers(0, 2**63 - 1), st.data())
def test_held_out_rows_leave_the_rest_in_order(n: int, seed: int, data: st.DataObject) -> None:
    val_size = data.draw(st.integers(0, n - 1))
    train, held_out = split_held_out(n, val_size=val_size, seed=seed)
    assert len(held_out) == val_size
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(n))
    assert (np.diff(train) > 0).all()
    assert (np.diff(held_out) > 0).all()


def test_holding_out_everything_is_refused() -> None:
    with pytest.raises(DataError, match="5 rows; allowed: 0 to 4"):
        split_held_out(5, val_size=5, seed=0)


@given(
    n=st.integers(1, 40),
    size=st.integers(1, 50),
    epochs=st.none() | st.integers(1, 4),
    steps=st.none() | st.integers(1, 60),
)
def test_every_epoch_uses_every_row_once(
    n: int, size: int, epochs: int | None, steps: int | None
) -> None:
    indices = np.arange(n, dtype=np.int64) * 3 + 1
    order = BatchOrder(indices, size, seed=5, num_epochs=epochs, max_steps=steps)
    per_epoch = -(-n // size)
    assert order.steps_per_epoch == per_epoch
    limits = [steps] if steps else []
    if epochs or not steps:
        limits.append(per_epoch * (epochs or 1))
    assert order.total_steps == min(limits)
    seen: list[int] = []
    for t in range(1, order.total_steps + 1):
        batch = order.batch(t)
        seen += batch.tolist()
        assert order.epoch_of(t) == len(seen) / n
        if len(batch) < size:  # only the last batch of an epoch is partial
            assert t % per_epoch == 0
        if t % per_epoch == 0:
            assert sorted(seen[-n:]) == indices.tolist()


def test_batches_can_be_asked_in_any_order() -> None:
    indices = np.arange(50, dtype=np.int64)
    order = BatchOrder(indices, 8, seed=1, num_epochs=3)
    forward = [order.batch(t).tolist() for t in range(1, order.total_steps + 1)]
    again = BatchOrder(indices, 8, seed=1, num_epochs=3)
    backward = [again.batch(t).tolist() for t in range(order.total_steps, 0, -1)]
    assert forward == backward[::-1]
    assert forward[:7] != forward[7:14]
    assert order.epoch_of(0) == 0.0
    with pytest.raises(ValueError, match="read-only"):
        order.batch(1)[0] = 3


def test_no_rows_is_refused() -> None:
    with pytest.raises(DataError, match="no rows to train on"):
        BatchOrder(np.empty(0, dtype=np.int64), 4, seed=0)
