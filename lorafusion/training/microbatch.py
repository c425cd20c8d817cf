"""A place of the plan as tensors: what enters the base, and what its output is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from lorafusion.adapters.bank import AdapterBank
from lorafusion.kernels.layout import AdapterLayout, Segment
from lorafusion.planner.plan import Place
from lorafusion.training.job import TrainingJob


@dataclass(frozen=True)
class Microbatch:
    """T rows of packed samples, L of them labelled.

    Attributes:
        layout: Rows -> samples and jobs.
        tokens_T: int64 [T], the inputs.
        labelled_L: int64 [L], the rows that have a target.
        targets_L: int64 [L].
        weights_L: [L], one over the trained tokens of the row's job and step (1 in an eval).
        samples: Job and sample of each sample, in order of rows.
        ends: For each sample, the end of its labelled rows among the L.
    """

    layout: AdapterLayout
    tokens_T: torch.Tensor
    labelled_L: torch.Tensor
    targets_L: torch.Tensor
    weights_L: torch.Tensor
    samples: tuple[tuple[str, int], ...]
    ends: tuple[int, ...]


def build_microbatch(
    place: Place, jobs: Mapping[str, TrainingJob], bank: AdapterBank
) -> Microbatch:
    """Lay out the samples of ``place`` one after the other, without padding."""
    segments: list[Segment] = []
    tokens: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    samples: list[tuple[str, int]] = []
    for planned in place.segments:
        job = jobs[planned.job]
        denominator = job.data.trained_tokens(planned.step) if place.kind == "train" else 1
        segments.append(
            Segment(job.slot, job.spec.seed, planned.step, planned.samples, planned.lengths)
        )
        for index in planned.samples:
            inputs, target = job.data.rows(place.kind, index)
            tokens.append(inputs)
            targets.append(target)
            weights.append(np.full((target >= 0).sum(), 1 / denominator))
            samples.append((planned.job, index))
    target_T = np.concatenate(targets)
    labelled = np.flatnonzero(target_T >= 0)
    slots = [segment.slot for segment in segments]
    return Microbatch(
        layout=AdapterLayout.build(segments, bank.modules(slots), training=place.kind == "train"),
        tokens_T=torch.from_numpy(np.concatenate(tokens).astype(np.int64)),
        labelled_L=torch.from_numpy(labelled),
        targets_L=torch.from_numpy(target_T[labelled].astype(np.int64)),
        weights_L=torch.from_numpy(np.concatenate(weights)),
        samples=tuple(samples),
        ends=tuple(np.cumsum([len(weight) for weight in weights]).tolist()),
    )
