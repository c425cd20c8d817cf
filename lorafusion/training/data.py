"""One job's samples as the loop needs them: which make up a step, and what enters the base."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

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
        return int(max(self.training.lengths.max(), self.held_out.lengths.max())) - 1

    def batch(self, step: int) -> Batch:
        """The global batch of ``step``, for the planner."""
        return _batch(step, tuple(self.order.batch(step).tolist()), self.training)

    def eval_batch(self, step: int) -> Batch:
        """All held-out samples, to be evaluated after ``step``."""
        return _batch(step, self.held_out_indices, self.held_out)

    def tokens_from(self, step: int) -> int:
        """Rows of all steps from ``step`` to the last."""
        lengths = self.training.lengths - 1
        steps = range(step, self.order.total_steps + 1)
        return sum(int(lengths[self.order.batch(t)].sum()) for t in steps)

    def rows(self, kind: PlaceKind, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets (-1 = none) of a sample, each [tokens - 1].

        The last token is a target and nothing else: what follows the last target is not run. The
        target of a row is the next token of the same sample, so none crosses a sample's edge.
        """
        sample = (self.training if kind == "train" else self.held_out).sample(index)
        targets = np.where(sample.trained[1:], sample.input_ids[1:], -1)
        return sample.input_ids[:-1], targets

    def trained_tokens(self, step: int) -> int:
        """Denominator of the loss of ``step``: targets in its global batch."""
        return int(self.training.trained_counts[self.order.batch(step)].sum())

    def tokens(self, step: int) -> int:
        """Real tokens in the global batch of ``step``."""
        return int(self.training.lengths[self.order.batch(step)].sum())


def _batch(step: int, samples: tuple[int, ...], dataset: TokenisedDataset) -> Batch:
    lengths = dataset.lengths[list(samples)] - 1
    return Batch(step, samples, tuple(lengths.tolist()))
