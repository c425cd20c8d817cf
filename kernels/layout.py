"""Which rows of a microbatch belong to which job, and what each job has on each linear.

Built once per microbatch on the host and passed to every op whole.

Example: job 0 (slot 0) brings samples 5 and 9 of lengths 3 and 2, job 1 (slot 1) sample 2 of
length 4::

    row               0  1  2  3  4  5  6  7  8
    segment_starts    0              5           9
    segment_slots     0              1
    sample_starts     0        3     5           9
    row_sample        5  5  5  9  9  2  2  2  2
    row_position      0  1  2  0  1  0  1  2  3

There are no padding rows. Slot -1 marks rows without an adapter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from lorafusion.kernels.hashing import fold, hash64, signed


class FusedForm(NamedTuple):
    """What an adapter method gives the kernels for one (job, module), for one step.

    The op returns gradients for A and B exactly where they require one, so a method may freeze
    either, or compute both from smaller parameters by autograd.
    """

    A: torch.Tensor
    """[r, in], float32 (float64 with a float64 base)."""
    B: torch.Tensor
    """[out, r], as A."""
    scale: float
    """Factor s of the product."""
    dropout: int = 0
    """Dropout threshold in 1/65536, see :func:`lorafusion.kernels.dropout.threshold`."""


@dataclass(frozen=True)
class ModuleAdapters:
    """The adapters on one linear of the base."""

    key: int
    """Hash of the module's full name, see :func:`lorafusion.kernels.hashing.module_key`."""
    forms: Mapping[int, FusedForm]
    """Slot -> form. A slot without an entry has no adapter here."""


class Projection(NamedTuple):
    """A frozen linear with the adapters on it: one of several that are given the same tensor."""

    weight: torch.Tensor
    """[N, K] of any strides."""
    bias: torch.Tensor | None
    """[N] or None."""
    adapters: ModuleAdapters


class Segment(NamedTuple):
    """The rows of one job: its samples, one after the other."""

    slot: int
    seed: int
    step: int
    samples: Sequence[int]
    lengths: Sequence[int]


class Rows(NamedTuple):
    """Rows ``start:stop`` of a microbatch, with their job's form and slot."""

    start: int
    stop: int
    form: FusedForm
    slot: int


@dataclass(frozen=True)
class AdapterLayout:
    """Rows -> jobs, of one microbatch. See the example at the top of this file."""

    segment_starts: tuple[int, ...]
    """G + 1 row numbers."""
    segment_slots: tuple[int, ...]
    """G slots, none twice but -1."""
    sample_starts: tuple[int, ...]
    """N + 1 row numbers."""
    row_prefix_T: torch.Tensor
    """int64 [T]: hash64(job seed, step)."""
    row_sample_T: torch.Tensor
    """int64 [T]: index of the row's sample in its dataset."""
    row_position_T: torch.Tensor
    """int64 [T]: position of the row in its sample."""
    modules: Mapping[str, ModuleAdapters]
    """Full module name -> the adapters on it."""
    training: bool
    """Whether dropout is on."""

    @classmethod
    def build(
        cls,
        segments: Sequence[Segment],
        modules: Mapping[str, ModuleAdapters],
        *,
        training: bool,
    ) -> AdapterLayout:
        """Lay the segments out one after the other."""
        slots = [segment.slot for segment in segments if segment.slot >= 0]
        assert len(slots) == len(set(slots)), f"a slot has two segments: {slots}"
        for segment in segments:
            assert len(segment.samples) == len(segment.lengths), (
                f"slot {segment.slot}: {len(segment.samples)} samples, "
                f"but {len(segment.lengths)} lengths"
            )
        lengths = [length for segment in segments for length in segment.lengths]
        samples = [sample for segment in segments for sample in segment.samples]
        prefixes = [
            signed(hash64(segment.seed, segment.step))
            for segment in segments
            for _ in segment.samples
        ]
        repeats = torch.tensor(lengths, dtype=torch.int64)
        starts = _starts(lengths)
        row = torch.arange(starts[-1])
        first = torch.tensor(starts[:-1], dtype=torch.int64)
        return cls(
            segment_starts=_starts([sum(segment.lengths) for segment in segments]),
            segment_slots=tuple(segment.slot for segment in segments),
            sample_starts=starts,
            row_prefix_T=torch.tensor(prefixes, dtype=torch.int64).repeat_interleave(repeats),
            row_sample_T=torch.tensor(samples, dtype=torch.int64).repeat_interleave(repeats),
            row_position_T=row - first.repeat_interleave(repeats),
            modules=modules,
            training=training,
        )

    def adapted_rows(self, adapters: ModuleAdapters) -> Iterator[Rows]:
        """The segments that have an adapter on this module and at least one row."""
        bounds = zip(self.segment_starts[:-1], self.segment_starts[1:], strict=True)
        for slot, (start, stop) in zip(self.segment_slots, bounds, strict=True):
            form = adapters.forms.get(slot)
            if form is not None and stop > start:
                form = form if self.training else form._replace(dropout=0)
                yield Rows(start, stop, form, slot)

    def row_keys(self, module_key: int, start: int, stop: int) -> torch.Tensor:
        """int64 [stop - start]: hash64(seed, step, module, sample, position) of each row."""
        prefix, sample, position = (
            tensor[start:stop]
            for tensor in (self.row_prefix_T, self.row_sample_T, self.row_position_T)
        )
        # hash64 of two words, continued: the state after k words is a word's fold into k - 1.
        return fold(fold(fold(prefix, module_key), sample), position)


def _starts(lengths: Sequence[int]) -> tuple[int, ...]:
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    return tuple(starts)
