"""Carries out one place of a plan: forward, loss, backward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from lorafusion.adapters.bank import AdapterBank
from lorafusion.models.stage import Stage
from lorafusion.planner.plan import Place, PlannedSegment
from lorafusion.training.job import TrainingJob
from lorafusion.training.microbatch import Microbatch, build_microbatch


class Executor:
    """Runs places on one stage that holds the whole base."""

    def __init__(self, stage: Stage, bank: AdapterBank, *, deterministic: bool) -> None:
        """``deterministic``: each sample gets a forward and backward of its own.

        Then no op's shape, and with it no rounding, depends on what else is in the place.
        """
        self._stage = stage
        self._bank = bank
        self._deterministic = deterministic

    def run(self, place: Place, jobs: Mapping[str, TrainingJob]) -> None:
        """Give each job of ``place`` the losses (and gradients) of its samples there."""
        for part in single_samples(place) if self._deterministic else (place,):
            microbatch = build_microbatch(part, jobs, self._bank)
            with torch.set_grad_enabled(place.kind == "train"):
                losses = self._run(microbatch)
            self._hand_out(part, microbatch, losses, jobs)

    def _run(self, microbatch: Microbatch) -> torch.Tensor:
        hidden_TD = self._stage(microbatch.tokens_T, microbatch.layout)
        total, loss_L = self._stage.loss(
            hidden_TD[microbatch.labelled_L], microbatch.targets_L, microbatch.weights_L
        )
        if total.requires_grad:
            total.backward()
        return loss_L

    def _hand_out(
        self,
        place: Place,
        microbatch: Microbatch,
        loss_L: torch.Tensor,
        jobs: Mapping[str, TrainingJob],
    ) -> None:
        start = 0
        for (name, sample), end in zip(microbatch.samples, microbatch.ends, strict=True):
            jobs[name].add_loss(sample, float(loss_L[start:end].double().sum()), end - start)
            start = end
        if place.kind == "train":
            for segment in place.segments:
                alone = segment.samples[0] if self._deterministic else None
                jobs[segment.job].gradients.collect(alone)


def single_samples(place: Place) -> Iterator[Place]:
    """``place`` cut into one place per sample."""
    for segment in place.segments:
        columns = (segment.samples, segment.lengths, segment.labelled, segment.loads)
        for sample in zip(*columns, strict=True):
            one = PlannedSegment(segment.job, segment.step, *((value,) for value in sample))
            yield Place(place.kind, (one,))
