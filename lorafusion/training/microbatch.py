"""A place of the plan as tensors: what enters a stage, and what the last one compares with."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import numpy as np
import torch

from lorafusion.adapters.bank import AdapterBank
from lorafusion.kernels.layout import AdapterLayout, Segment
from lorafusion.planner.plan import Place, PlannedSegment
from lorafusion.training.shard import JobShard


@dataclass(frozen=True)
class Targets:
    """What the last stage needs of a microbatch: L labelled rows among its T.

    Attributes:
        labelled_L: int64 [L], the rows that have a target.
        targets_L: int64 [L].
        weights_L: [L], one over the trained tokens of the row's job and step (1 in an eval).
        counts: Labelled rows of each sample, in order of rows.
    """

    labelled_L: torch.Tensor
    targets_L: torch.Tensor
    weights_L: torch.Tensor
    counts: tuple[int, ...]


def build_layout(place: Place, shards: Mapping[str, JobShard], bank: AdapterBank) -> AdapterLayout:
    """Lay out the samples of ``place`` one after the other, without padding.

    The rows of a job that is not among ``shards`` go without an adapter.
    """
    here = [segment for segment in place.segments if segment.job in shards]
    return AdapterLayout.build(
        [_segment(planned, shards.get(planned.job)) for planned in place.segments],
        bank.modules([shards[segment.job].slot for segment in here]),
        training=place.kind == "train",
    )


def build_tokens(place: Place, shards: Mapping[str, JobShard]) -> torch.Tensor:
    """int64 [T], what the first stage embeds; zeros where a job is not among ``shards``."""
    tokens = [
        shards[segment.job].data.rows(place.kind, sample)[0]
        if segment.job in shards
        else np.zeros(length)
        for segment in place.segments
        for sample, length in zip(segment.samples, segment.lengths, strict=True)
    ]
    return torch.from_numpy(np.concatenate(tokens).astype(np.int64))


def build_targets(place: Place, shards: Mapping[str, JobShard]) -> Targets:
    """What the last stage needs. Every job must be among ``shards``."""
    targets: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    for segment in place.segments:
        data = shards[segment.job].data
        denominator = data.trained_tokens(segment.step) if place.kind == "train" else 1
        for sample in segment.samples:
            _, target = data.rows(place.kind, sample)
            targets.append(target)
            weights.append(np.full((target >= 0).sum(), 1 / denominator))
    target_T = np.concatenate(targets)
    labelled = np.flatnonzero(target_T >= 0)
    return Targets(
        labelled_L=torch.from_numpy(labelled),
        targets_L=torch.from_numpy(target_T[labelled].astype(np.int64)),
        weights_L=torch.from_numpy(np.concatenate(weights)),
        counts=tuple(map(len, weights)),
    )


def single_segments(place: Place) -> list[Place]:
    """``place`` cut into one place per job."""
    return [Place(place.kind, (segment,)) for segment in place.segments]


def single_samples(place: Place) -> list[Place]:
    """``place`` cut into one place per sample."""
    return [
        Place(place.kind, (PlannedSegment(segment.job, segment.step, *((v,) for v in sample)),))
        for segment in place.segments
        for sample in zip(
            segment.samples, segment.lengths, segment.labelled, segment.loads, strict=True
        )
    ]


def in_two(place: Place) -> list[Place]:
    """A place of several samples cut between two of them, near half of its tokens."""
    samples = single_samples(place)
    ends = list(accumulate(sample.tokens for sample in samples))
    cut = min(range(1, len(samples)), key=lambda count: abs(2 * ends[count - 1] - ends[-1]))
    return [_joined(samples[:cut]), _joined(samples[cut:])]


def at_most(place: Place, tokens: int) -> list[Place]:
    """``place`` cut into parts of at most so many tokens, or of one sample that has more."""
    if place.tokens <= tokens:
        return [place]
    parts: list[list[Place]] = []
    size = 0
    for sample in single_samples(place):
        if not parts or size + sample.tokens > tokens:
            parts.append([])
            size = 0
        parts[-1].append(sample)
        size += sample.tokens
    return [_joined(part) for part in parts]


def apart(places: Sequence[Place], jobs: Collection[str]) -> list[Place]:
    """``places``, and where one has samples of ``jobs`` it is cut into one per job."""
    return [
        part
        for place in places
        for part in (
            single_segments(place)
            if any(segment.job in jobs for segment in place.segments)
            else [place]
        )
    ]


def _joined(samples: Sequence[Place]) -> Place:
    """Consecutive samples of a place as one part of it."""
    segments = [sample.segments[0] for sample in samples]
    jobs = groupby(segments, key=lambda segment: segment.job)
    return Place(samples[0].kind, tuple(_merged(list(parts)) for _, parts in jobs))


def _merged(parts: Sequence[PlannedSegment]) -> PlannedSegment:
    columns = (
        tuple(value for part in parts for value in getattr(part, name))
        for name in ("samples", "lengths", "labelled", "loads")
    )
    return PlannedSegment(parts[0].job, parts[0].step, *columns)


def _segment(planned: PlannedSegment, shard: JobShard | None) -> Segment:
    slot, seed = (shard.slot, shard.spec.seed) if shard is not None else (-1, 0)
    return Segment(slot, seed, planned.step, planned.samples, planned.lengths)
