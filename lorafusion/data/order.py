"""Which rows a step uses: pure functions of the seed, so that a resumed job needs no state.

Orders come from hashing (seed, purpose, epoch, row) with splitmix64's finaliser (Steele, Lea and
Flood 2014, "Fast splittable pseudorandom number generators") and sorting by the hash. They depend
on no library's generator, so they stay the same across versions and machines.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from lorafusion.data.counts import rows_left, steps_per_epoch, total_steps

IndexArray = npt.NDArray[np.int64]
_WORD = 0xFFFFFFFFFFFFFFFF
_GAMMA = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, splitmix64's increment
_EPOCH, _HELD_OUT = 1, 2  # purposes: the same seed gives unrelated orders for them


def epoch_order(n: int, *, seed: int, epoch: int) -> IndexArray:
    """The order of ``n`` rows in one epoch.

    Args:
        n: Number of rows.
        seed: The job's seed; any integer, of which the low 64 bits count.
        epoch: Counted from 0.

    Returns:
        A permutation of 0..n-1, int64 [n].
    """
    return _permutation(n, (seed, _EPOCH, epoch))


def split_held_out(n: int, *, val_size: int, seed: int) -> tuple[IndexArray, IndexArray]:
    """Hold ``val_size`` of ``n`` rows out of training.

    Returns:
        The training rows and the held-out rows, each ascending, int64.

    Raises:
        DataError: No row would be left to train on.
    """
    rows_left(n, val_size=val_size)
    order = _permutation(n, (seed, _HELD_OUT))
    return np.sort(order[val_size:]), np.sort(order[:val_size])


class BatchOrder:
    """The global batches of one job: step t (counted from 1) -> dataset indices.

    Every epoch goes once through ``indices`` in a new order; its last batch may be smaller.
    With ``num_epochs`` and ``max_steps`` whichever ends first counts; with neither, one epoch.
    """

    def __init__(
        self,
        indices: IndexArray,
        batch_size: int,
        *,
        seed: int,
        num_epochs: int | None = None,
        max_steps: int | None = None,
    ) -> None:
        self._indices = indices
        self._batch_size = batch_size
        self._seed = seed
        self.steps_per_epoch: int = steps_per_epoch(len(indices), batch_size)
        """Steps of one epoch, the last partial batch included."""
        self.total_steps: int = total_steps(
            self.steps_per_epoch, num_epochs=num_epochs, max_steps=max_steps
        )
        """Steps of the whole job."""
        self._memo: tuple[int, IndexArray] | None = None

    def batch(self, t: int) -> IndexArray:
        """The dataset indices of step ``t``, int64 [batch size or fewer], read-only."""
        assert 1 <= t <= self.total_steps, f"step {t} is not in 1..{self.total_steps}"
        epoch, place = divmod(t - 1, self.steps_per_epoch)
        start = place * self._batch_size
        return self._epoch(epoch)[start : start + self._batch_size]

    def epoch_of(self, t: int) -> float:
        """Epochs done after step ``t`` (0 before training): 1.5 is half-way through the second."""
        if t == 0:
            return 0.0
        epoch, place = divmod(t - 1, self.steps_per_epoch)
        rows = min((place + 1) * self._batch_size, len(self._indices))
        return (epoch * len(self._indices) + rows) / len(self._indices)

    def _epoch(self, epoch: int) -> IndexArray:
        # Sorting 28 thousand hashes takes about 3 ms, too much to repeat at every step.
        if self._memo is None or self._memo[0] != epoch:
            order = epoch_order(len(self._indices), seed=self._seed, epoch=epoch)
            rows = self._indices[order].astype(np.int64)
            rows.setflags(write=False)
            self._memo = (epoch, rows)
        return self._memo[1]


def _permutation(n: int, key: Iterable[int]) -> IndexArray:
    stream = 0
    for word in key:
        stream = _finalise_int((stream ^ (word & _WORD)) + _GAMMA)
    with np.errstate(over="ignore"):  # the arithmetic is modulo 2^64
        keys = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_GAMMA) + np.uint64(stream)
        keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        keys ^= keys >> np.uint64(31)
    return np.argsort(keys, kind="stable").astype(np.int64)  # stable: ties by index


def _finalise_int(word: int) -> int:
    word &= _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)
