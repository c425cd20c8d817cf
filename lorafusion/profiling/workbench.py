"""The base with probe jobs on it, whose microbatches are timed as training runs them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import record_function

from lorafusion.adapters.bank import AdapterBank
from lorafusion.adapters.lora import LoraConfig
from lorafusion.data.dataset import DatasetReport, TokenisedDataset
from lorafusion.data.order import BatchOrder
from lorafusion.jobs.schema import DatasetConfig, JobSpec
from lorafusion.models.load import Base
from lorafusion.models.stage import Stage
from lorafusion.planner.plan import Place, PlannedSegment
from lorafusion.profiling.design import Probe
from lorafusion.training.compute import Compute
from lorafusion.training.data import JobData
from lorafusion.training.optimizer import judge
from lorafusion.training.shard import JobShard
from lorafusion.training.team import NoPeers

__all__ = ["Timing", "Workbench"]

# A probe job takes a step a measurement, and never comes to its last.
_STEPS = 10**6


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one microbatch.

    Attributes:
        forward: With the loss.
        backward: Of the whole of it.
        loss: Head and loss, a part of ``forward``; their backward is made there too.
        steps: Optimizer steps of all its jobs, with their gradient norms.
    """

    forward: float
    backward: float
    loss: float
    steps: float

    @property
    def microbatch(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward


class Workbench:
    """Runs probes on a base that is whole."""

    def __init__(self, base: Base, adapter: LoraConfig) -> None:
        """``adapter`` is that of all probe jobs but for its rank."""
        self._base = base
        self._adapter = adapter
        self._stage = _WatchedStage(base)
        self.stage: Stage = self._stage
        self._bank = AdapterBank(base.model, base.names, self._stage.shared_inputs)
        self.shards: dict[str, JobShard] = {}
        """The probe jobs that are there, by name."""
        self._compute = Compute(
            self._stage, self._bank, self.shards, deterministic=False, on_failed=_raise
        )
        self._numbers = np.random.default_rng(0)
        model: Any = base.model
        self._vocabulary: int = model.get_input_embeddings().weight.shape[0]

    @contextmanager
    def placed(self, probes: Sequence[Probe]) -> Generator[list[Place]]:
        """The probes as places that complete a step of each of their jobs.

        Probes share jobs: the first segments of one rank are one job's, the second ones another's,
        and so on. That takes less memory, and no step is a job's first, which allocates.
        """
        samples: dict[tuple[int, int], list[tuple[int, int]]] = {}
        places: list[Place] = []
        for probe in probes:
            seats: dict[int, int] = defaultdict(int)
            segments: list[PlannedSegment] = []
            for part in probe.segments:
                seat = part.rank, seats[part.rank]
                seats[part.rank] += 1
                own = samples.setdefault(seat, [])
                numbers = tuple(range(len(own), len(own) + len(part.lengths)))
                own += zip(part.lengths, part.labelled, strict=True)
                segment = PlannedSegment(_name(seat), 1, numbers, part.lengths, part.labelled)
                segments.append(segment)
            places.append(Place("train", tuple(segments), tuple((s.job, 1) for s in segments)))
        try:
            for seat, own in samples.items():
                self.shards[_name(seat)] = shard = self._shard(seat, own)
                self._step(shard)  # which makes AdamW's state
            yield places
        finally:
            for shard in self.shards.values():
                self._bank.remove(shard.slot)
            self.shards.clear()

    def run(self, place: Place) -> Timing:
        """Run a place of :meth:`placed` forward and backward, and do its steps."""
        self._stage.loss_s = 0.0
        began = self._now()
        work, _ = self._compute.forward(place, None)
        between = self._now()
        self._compute.backward(work, None)
        ended = self._now()
        for segment in place.segments:
            with record_function(f"step {segment.job}"):  # as training names it in a profile
                self._step(self.shards[segment.job])
        steps = self._now() - ended
        return Timing(between - began, ended - between, self._stage.loss_s, steps)

    def saved_bytes(self, place: Place) -> tuple[int, int]:
        """Bytes that are held for a place's backward: of the layers, and of the head and loss.

        Each storage counts once; the base's own weights and the adapters' do not.
        """
        weights = [*self._base.model.parameters(), *self._base.model.buffers()]
        weights += [leaf for shard in self.shards.values() for leaf in shard.parameters.values()]
        known = {tensor.untyped_storage().data_ptr() for tensor in weights}
        held: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                held[storage.data_ptr()] = storage.nbytes()
            return tensor

        before: list[int] = []
        self._stage.on_loss = lambda: before.append(sum(held.values()))
        try:
            with saved_tensors_hooks(keep, lambda kept: kept):
                work, _ = self._compute.forward(place, None)
                whole = sum(held.values())
        finally:
            self._stage.on_loss = None
        del work
        return before[0], whole - before[0]

    def _shard(self, seat: tuple[int, int], samples: Sequence[tuple[int, int]]) -> JobShard:
        config = self._adapter.model_copy(update={"r": seat[0]})
        dataset = DatasetConfig(path="probe")
        spec = JobSpec(name=_name(seat), dataset=dataset, adapter=config, learning_rate=1e-6)
        resident = self._bank.add(config, self._bank.match(config.target_modules), seed=0)
        shard = JobShard(spec, self._data(samples), resident, deterministic=False)
        shard.collect(())
        return shard

    def _step(self, shard: JobShard) -> None:
        shard.add_up(NoPeers())
        squares = shard.complete(torch.zeros((), dtype=torch.float64, device=self._stage.device))
        shard.apply(judge(squares, torch.zeros_like(squares), shard.spec.max_grad_norm))

    def _data(self, samples: Sequence[tuple[int, int]]) -> JobData:
        """Samples of these (rows, labelled rows): one of n rows has n + 1 tokens."""
        sizes = np.array([rows + 1 for rows, _ in samples])
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        trained = np.zeros(offsets[-1], dtype=np.bool_)
        for end, (_, count) in zip(offsets[1:], samples, strict=True):
            trained[end - count : end] = True
        tokens = self._numbers.integers(0, self._vocabulary, offsets[-1], dtype=np.int32)
        rows = np.arange(len(sizes))
        report = DatasetReport("probe", len(rows), len(rows), 0, 0, len(tokens), int(trained.sum()))
        data = TokenisedDataset(tokens, trained, offsets, rows, report, content_hash="")
        order = BatchOrder(rows, len(rows), seed=0, max_steps=_STEPS)
        return JobData(data, data, (), order)

    def _now(self) -> float:
        if self._stage.device.type == "cuda":
            torch.cuda.synchronize(self._stage.device)
        return time.perf_counter()


class _WatchedStage(Stage):
    """Times its loss, and tells when it begins."""

    loss_s = 0.0
    on_loss: Callable[[], None] | None = None

    def loss(
        self, hidden_LD: torch.Tensor, targets_L: torch.Tensor, weights_L: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.on_loss is not None:
            self.on_loss()
        began = self._seconds()
        found = super().loss(hidden_LD, targets_L, weights_L)
        self.loss_s += self._seconds() - began
        return found

    def _seconds(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _name(seat: tuple[int, int]) -> str:
    return f"rank-{seat[0]}-{seat[1]}"


def _raise(job: str, reason: str) -> None:
    raise RuntimeError(f"{job}: {reason}")
