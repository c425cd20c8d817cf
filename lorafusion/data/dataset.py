"""Tokenised samples in flat arrays, cut to length, with a report of what was cut and dropped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lorafusion.errors import DataError


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One training example.

    Attributes:
        input_ids: int32 [tokens].
        trained: bool [tokens]; True = this token is a target (predicted from those before it).
    """

    input_ids: npt.NDArray[np.int32]
    trained: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class DatasetReport:
    """What became of a file's rows. ``rows == kept + dropped``."""

    path: str
    rows: int
    """Rows in the file."""
    kept: int
    """Rows that became samples."""
    cut: int
    """Kept rows that were longer than ``max_seq_len`` and lost their end."""
    dropped: int
    """Rows with nothing to train on within ``max_seq_len``."""
    tokens: int
    """Tokens of all samples."""
    trained_tokens: int
    """Those of them that are targets."""
    type: str = ""
    """Format of the rows."""
    trains: str = ""
    """What of a row is trained, in words."""

    @property
    def share(self) -> float:
        """Trained tokens of all tokens, 0 to 1."""
        return self.trained_tokens / self.tokens


@dataclass(frozen=True, eq=False)
class TokenisedDataset:
    """The samples of one dataset, behind each other in flat arrays.

    Every sample ends with a trained token: what stands after the last target cannot change a loss
    under causal attention, so it is left out. The first token is never a target.

    Attributes:
        input_ids: int32 [tokens].
        trained: bool [tokens], True where the token is a target.
        offsets: int64 [samples + 1]; sample i is ``offsets[i]:offsets[i + 1]``.
        rows: int64 [samples]; the row of the file, counted from 0 without blank lines.
        report: Counts.
        content_hash: Hex SHA-256 of the four arrays. The same tokens have the same hash whatever
            the file is called.
    """

    input_ids: npt.NDArray[np.int32]
    trained: npt.NDArray[np.bool_]
    offsets: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    report: DatasetReport
    content_hash: str

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each sample, int64 [samples]."""
        return np.diff(self.offsets)

    @property
    def trained_counts(self) -> npt.NDArray[np.int64]:
        """Targets of each sample, int64 [samples], each at least 1."""
        return np.add.reduceat(self.trained, self.offsets[:-1], dtype=np.int64)

    def sample(self, i: int) -> Sample:
        """Sample ``i`` in 0..len-1, as views of the flat arrays."""
        assert 0 <= i < len(self), f"sample {i} is not in 0..{len(self) - 1}"
        span = slice(self.offsets[i], self.offsets[i + 1])
        return Sample(self.input_ids[span], self.trained[span])


def fit(sample: Sample, max_seq_len: int) -> Sample | None:
    """Cut a sample on the right to at most ``max_seq_len`` tokens, the last of them a target.

    Returns None if no target is left at position 1 or later (nothing predicts the first token).
    """
    trained = sample.trained[:max_seq_len].copy()
    trained[:1] = False
    targets = np.flatnonzero(trained)
    if len(targets) == 0:
        return None
    length = int(targets[-1]) + 1
    return Sample(sample.input_ids[:length], trained[:length])


def build_dataset(samples: Iterable[Sample], *, path: str, max_seq_len: int) -> TokenisedDataset:
    """Collect the samples of a file's rows, in order; see :func:`fit` for what is cut and dropped.

    Raises:
        DataError: Nothing is left to train on.
    """
    flat = _Flat()
    rows: list[int] = []
    cut = total = shortest = 0
    for row, sample in enumerate(samples):
        total += 1
        targets = np.flatnonzero(sample.trained[1:]) + 1
        fitted = fit(sample, max_seq_len)
        if fitted is not None:
            cut += int(targets[-1]) >= max_seq_len
            flat.append(fitted)
            rows.append(row)
        elif len(targets):
            shortest = min(shortest or int(targets[0]) + 1, int(targets[0]) + 1)
    if not rows:
        raise DataError(_nothing_left(path, total, max_seq_len, shortest))
    input_ids, trained, offsets = flat.arrays()
    row_array = np.asarray(rows, dtype=np.int64)
    report = DatasetReport(
        path=path,
        rows=total,
        kept=len(rows),
        cut=cut,
        dropped=total - len(rows),
        tokens=len(input_ids),
        trained_tokens=int(trained.sum()),
    )
    content_hash = hash_content(input_ids, trained, offsets, row_array)
    return TokenisedDataset(input_ids, trained, offsets, row_array, report, content_hash)


def hash_content(*arrays: npt.NDArray[np.generic]) -> str:
    """Hex SHA-256 over the arrays' types, sizes and bytes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


class _Flat:
    """Samples behind each other, joined by the thousand.

    An array object of each takes 200 bytes, more than its tokens where rows are short.
    """

    def __init__(self) -> None:
        self._waiting: list[Sample] = []
        self._joined: list[Sample] = []
        self._lengths: list[int] = []

    def append(self, sample: Sample) -> None:
        self._waiting.append(sample)
        self._lengths.append(len(sample.input_ids))
        if len(self._waiting) == 1024:
            self._joined.append(_join(self._waiting))
            self._waiting = []

    def arrays(
        self,
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        whole = _join([*self._joined, *self._waiting])
        return whole.input_ids, whole.trained, np.cumsum([0, *self._lengths], dtype=np.int64)


def _join(samples: list[Sample]) -> Sample:
    return Sample(
        np.concatenate([sample.input_ids for sample in samples]),
        np.concatenate([sample.trained for sample in samples]),
    )


def _nothing_left(path: str, total: int, max_seq_len: int, shortest: int) -> str:
    if not shortest:
        return f"{path}: none of the {total} rows has a token to train on after its first token"
    return (
        f"{path}: nothing is left to train on: in all {total} rows the answer begins after "
        f"max_seq_len {max_seq_len} tokens; at least {shortest} are needed to keep one row"
    )
