"""A rank's stage with all that jobs need on it, the same on every rank."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor as Pool
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch

from lorafusion.adapters.bank import AdapterBank
from lorafusion.adapters.initial import ResolvedAdapter
from lorafusion.errors import LorafusionError
from lorafusion.jobs.schema import JobSpec
from lorafusion.models.load import Base
from lorafusion.models.stage import Stage
from lorafusion.training.checkpoint import Checkpoint
from lorafusion.training.compute import Compute
from lorafusion.training.data import JobData
from lorafusion.training.executor import Executor
from lorafusion.training.folders import CHECKPOINTS
from lorafusion.training.memory_kinds import MemoryMeter
from lorafusion.training.options import Traces
from lorafusion.training.out_of_memory import OutOfMemory
from lorafusion.training.passes import SharedPasses
from lorafusion.training.residents import Residents
from lorafusion.training.shard import JobShard
from lorafusion.training.shard_writer import Shard, ShardWriter, shard_name
from lorafusion.training.team import Team


class Site:
    """Stage, adapters, executor, and the writers of this rank's shards."""

    def __init__(
        self, base: Base, team: Team, writers: Pool, *, recompute: bool, deterministic: bool
    ) -> None:
        """No job is there yet.

        Args:
            base: The part of the base that this rank holds.
            team: The ranks.
            writers: Where shards are written.
            recompute: Whether layers' forwards are repeated in the backward.
            deterministic: See :class:`Compute`.
        """
        self.base = base
        self.stage = Stage(base, recompute=recompute)
        self.bank = AdapterBank(base.model, base.names, self.stage.shared_inputs)
        self.residents = Residents(self.bank, self._save)
        self._team = team
        self._deterministic = deterministic
        self._pool = writers
        self._writers: dict[str, ShardWriter] = {}
        self._compute = Compute(
            self.stage,
            self.bank,
            self.residents,
            deterministic=deterministic,
            on_failed=self._tell_failed,
        )
        self._compute.on_limit = self._tell_limit
        if base.sharded is not None:
            self._compute.passes = SharedPasses(base.sharded.weights, self._largest)
        self.executor = Executor(
            self._compute, self.residents, team, self.stage.width, self.stage.dtype
        )

    def join(
        self,
        spec: JobSpec,
        data: JobData,
        adapter: ResolvedAdapter,
        folder: Path,
        checkpoint: Checkpoint | None,
    ) -> JobShard:
        """Put a job on this stage, where it was left off.

        Args:
            spec: The job, its adapter's settings resolved.
            data: Its samples.
            adapter: Its adapter on the whole base.
            folder: The job's.
            checkpoint: What it resumes from.

        Raises:
            LorafusionError: The job cannot be put there; nothing of it is left.
        """
        own = [name for name in adapter.targets if name in self.bank.linears]
        resident = self.bank.add(adapter.config, own, seed=spec.seed)
        try:
            initial = adapter.initial_tensors()
            if initial is not None:
                resident.load({name: initial[name] for name in resident.parameters()})
            shard = JobShard(
                spec,
                data,
                resident,
                deterministic=self._deterministic,
                shared=self._team.together and self._team.replicas > 1,
            )
            if checkpoint is not None:
                updates = int(_state(checkpoint)["updates"])
                tensors = checkpoint.tensors(shard.tensor_names(updates))
                shard.restore(tensors, step=checkpoint.step, updates=updates)
        except BaseException:
            self.bank.remove(resident.slot)
            raise
        self._writers[spec.name] = ShardWriter(
            folder / CHECKPOINTS, self._pool, shard_name(self._team.stage)
        )
        self.residents.join(shard)
        return shard

    def meter(self, runtime: int) -> MemoryMeter:
        """Measures this rank's memory; ``runtime`` bytes of it were there before the base."""
        return MemoryMeter(self.base, self.residents, self._team.device, runtime)

    def watch(self, runtime: int, traces: Traces | None) -> None:
        """Let the recorder look at this rank, and tell in ``traces`` where memory runs out."""
        team, meter = self._team, self.meter(runtime)
        team.recorder.look_at(self.stage, meter)
        if traces is not None:
            reports = OutOfMemory(traces.folder, team.rank, team.device, meter)
            self._compute.out_of_memory = reports

    @property
    def held_bytes(self) -> int:
        """Most gradients that were held until their sample's turn, summed over the jobs."""
        return self.residents.held_bytes

    def _save(self, shard: JobShard) -> None:
        if self._team.together and self._team.replica:
            return  # the first replica holds the same
        name, step = shard.name, shard.step

        def tell(written: Future[Shard]) -> None:
            if written.cancelled():
                return
            error = written.exception()
            if error is not None:
                self._tell_failed(name, _why(step, error))
                return
            message = {"kind": "shard", "job": name, "step": step}
            self._team.post.report({**message, "shard": written.result().to_json()})

        try:
            written = self._writers[name].save(step, shard.tensors())
        except Exception as error:  # no memory for a copy: that job's failure alone
            self._tell_failed(name, _why(step, error))
        else:
            written.add_done_callback(tell)

    def _largest(self, number: int) -> int:
        """The largest of the replicas' numbers, none of which is above 2."""
        flags = torch.zeros(3, device=self._team.device)
        flags[number] = 1
        self._team.peers.total(flags)
        return int(flags.nonzero().max())

    def _tell_limit(self, tokens: int) -> None:
        self._team.post.report({"kind": "capacity", "tokens": tokens})

    def _tell_failed(self, job: str, reason: str) -> None:
        self._team.post.report({"kind": "failed", "job": job, "reason": reason})


def _why(step: int, error: BaseException) -> str:
    if isinstance(error, LorafusionError):  # says which file of which step
        return str(error)
    return f"the checkpoint of step {step}: {type(error).__name__}: {error}"


def _state(checkpoint: Checkpoint) -> Mapping[str, Any]:
    return checkpoint.state
