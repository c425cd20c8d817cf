"""One job's samples as the loop needs them: which make up a step, and what enters the base."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lorafusion.data.dataset import TokenisedDataset
from lorafusion.data.load import load_dataset
from lorafusion.data.order import BatchOrder, split_held_out
from lorafusion.data.tokenizer import Tokenizer
from lorafusion.jobs.schema import JobSpec
from lorafusion.planner.plan import PlaceKind
from lorafusion.planner.queue import Batch


@dataclass(frozen=True)
class JobData:
    """Training and held-out samples of one job, and the order of the former."""

    training: TokenisedDataset
    held_out: TokenisedDataset
    held_out_indices: tuple[int, ...]
    order: BatchOrder

    @classmethod
    def load(cls, spec: JobSpec, tokenizer: Tokenizer, cache_dir: Path) -> JobData:
        """Tokenise (or take from the cache), hold rows out, and fix the order.

        Raises:
            DataError: A file cannot be used, or nothing is left to train on.
        """
        load = partial(
            load_dataset, tokenizer=tokenizer, max_seq_len=spec.max_seq_len, cache_dir=cache_dir
        )
        training = load(spec.dataset)
        rows, held_rows = split_held_out(len(training), val_size=spec.eval.val_size, seed=spec.seed)
        held_out = training
        if spec.eval.dataset is not None:
            held_out = load(spec.eval.dataset)
            held_rows = np.arange(len(held_out))
        order = BatchOrder(
            rows,
            spec.global_batch_size,
            seed=spec.seed,
            num_epochs=spec.num_epochs,
            max_steps=spec.max_steps,
        )
        return cls(training, held_out, tuple(held_rows.tolist()), order)

    @property
    def longest(self) -> int:
        """Most rows that one sample takes in a microbatch."""
        return int(max(self._rows.rows.max(), self._held_out_rows.rows.max()))

    def batch(self, step: int) -> Batch:
        """The global batch of ``step``, for the planner."""
        return self._rows.batch(step, self.order.batch(step))

    def eval_batch(self, step: int) -> Batch:
        """All held-out samples, to be evaluated after ``step``."""
        return self._held_out_rows.batch(step, np.asarray(self.held_out_indices))

    def tokens_from(self, step: int) -> int:
        """Rows of all steps from ``step`` to the last."""
        return self._tokens_until(self.order.total_steps) - self._tokens_until(step - 1)

    def rows(self, kind: PlaceKind, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets (-1 = none) of a sample, each [tokens - 1].

        The last token is a target and nothing else: what follows the last target is not run. The
        target of a row is the next token of the same sample, so none crosses a sample's edge.
        """
        sample = (self.training if kind == "train" else self.held_out).sample(index)
        targets = np.where(sample.trained[1:], sample.input_ids[1:], -1)
        return sample.input_ids[:-1], targets

    def name(self, kind: PlaceKind, index: int) -> str:
        """A sample in words that lead to it, such as ``sample 4, row 5 of rows.jsonl``."""
        dataset = self.training if kind == "train" else self.held_out
        return f"sample {index}, row {dataset.rows[index] + 1} of {dataset.report.path}"

    def trained_tokens(self, step: int) -> int:
        """Denominator of the loss of ``step``: targets in its global batch."""
        return int(self._rows.labelled[self.order.batch(step)].sum())

    def tokens(self, step: int) -> int:
        """Real tokens in the global batch of ``step``."""
        batch = self.order.batch(step)
        return int(self._rows.rows[batch].sum()) + len(batch)

    @cached_property
    def _rows(self) -> _Rows:
        return _Rows.of(self.training)

    @cached_property
    def _held_out_rows(self) -> _Rows:
        return self._rows if self.held_out is self.training else _Rows.of(self.held_out)

    def _tokens_until(self, step: int) -> int:
        """Rows of steps 1 to ``step``."""
        epochs, rest = divmod(step, self.order.steps_per_epoch)
        whole = range(1, self.order.steps_per_epoch + 1) if epochs else ()  # all are equally long
        return epochs * self._tokens_of(whole) + self._tokens_of(range(step - rest + 1, step + 1))

    def _tokens_of(self, steps: Iterable[int]) -> int:
        return sum(int(self._rows.rows[self.order.batch(t)].sum()) for t in steps)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows that each sample of a dataset takes, and labelled ones among them, int64 [samples].

    Counted once: over ten thousand samples of 600 tokens it takes 10 ms, and a step needs 16 of
    them.
    """

    rows: npt.NDArray[np.int64]
    labelled: npt.NDArray[np.int64]

    @classmethod
    def of(cls, dataset: TokenisedDataset) -> _Rows:
        """The last token is no input; all targets are, as the token behind one."""
        return cls(dataset.lengths - 1, dataset.trained_counts)

    def batch(self, step: int, samples: npt.NDArray[np.int64]) -> Batch:
        """These samples, for the planner."""
        rows, labelled = self.rows[samples], self.labelled[samples]
        columns = [tuple(column.tolist()) for column in (samples, rows, labelled)]
        return Batch(step, columns[0], columns[1], columns[2])
