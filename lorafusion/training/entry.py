"""How a job comes into a run on rank 0: its folder, its adapter, its checkpoint, its output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor as Pool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafusion.adapters.initial import ResolvedAdapter, note_on_base
from lorafusion.data.tokenizer import Tokenizer
from lorafusion.errors import (
    AdapterError,
    CheckpointError,
    DataError,
    ModelError,
    OutputError,
)
from lorafusion.jobs.schema import JobSpec, RunSpec
from lorafusion.training import folders
from lorafusion.training.arrivals import Arrival
from lorafusion.training.checkpoint import Checkpoint, Json, check_fingerprint, newest
from lorafusion.training.data import JobData
from lorafusion.training.events import Events
from lorafusion.training.job import TrainingJob
from lorafusion.training.job_setup import load_data, resolve
from lorafusion.training.manifest import ManifestWriter
from lorafusion.training.options import RunOptions
from lorafusion.training.output import JobOutput, fingerprint
from lorafusion.training.result import JobResult
from lorafusion.training.revision import Leave
from lorafusion.training.shard_writer import shard_name
from lorafusion.training.site import Site
from lorafusion.training.team import Team

# What fails one job alone while it is prepared.
OF_ONE_JOB = (DataError, AdapterError, ModelError, OutputError, CheckpointError)


def job_folder(job: JobSpec, output: Path) -> Path:
    """Where a job's results go."""
    return Path(job.output_dir) if job.output_dir else output / job.name


@dataclass(frozen=True)
class Hall:
    """What all jobs of a run come into.

    Attributes:
        spec: The run.
        options: How it is done.
        events: Told what happens.
        team: The ranks.
        config: Of the base.
        tokenizer: Of the base.
    """

    spec: RunSpec
    options: RunOptions
    events: Events
    team: Team
    config: Any
    tokenizer: Tokenizer

    def load(self, spec: JobSpec) -> tuple[JobSpec, JobData]:
        """A job's samples, see :func:`load_data`."""
        return load_data(spec, self.config, self.tokenizer)

    def failed(self, spec: JobSpec, folder: Path, error: Exception | str) -> JobResult:
        """The result of a job that never trained."""
        result = JobResult(spec.name, "failed", reason=str(error), folder=str(folder))
        self.events.ended(result)
        return result


class Entry:
    """Puts jobs on this stage."""

    def __init__(
        self, hall: Hall, site: Site, writers: Pool, *, base_hash: str, capacity: int
    ) -> None:
        """No job is here yet.

        Args:
            hall: What they come into.
            site: This stage.
            writers: Where manifests are written.
            base_hash: Of all of the base's weights.
            capacity: Tokens that a microbatch holds at most.
        """
        self._hall = hall
        self._site = site
        self._writers = writers
        self._hash = base_hash
        self._capacity = capacity
        self.outputs: dict[str, JobOutput] = {}
        """Of the jobs that are here."""
        self.adapters: dict[str, ResolvedAdapter] = {}
        self.leaves: list[Leave] = []
        """Jobs that are on this stage and not among those that train."""
        self.failed: dict[str, JobResult] = {}
        """Arrivals that came to nothing."""
        self.homes: Mapping[str, int] | None = None
        """Job -> the replica that it is on; None: every job is on all."""
        self._given: dict[str, JobSpec] = {}

    def put(self, spec: JobSpec, data: JobData, folder: Path, *, resume: bool) -> TrainingJob:
        """Put a job on this stage, where its newest checkpoint in ``folder`` left it off.

        Raises:
            LorafusionError: It cannot be put there; nothing of it is left.
        """
        hall, site = self._hall, self._site
        given = spec
        spec, adapter = resolve(spec, site.base.names)
        if adapter.source is not None:
            note = note_on_base(adapter.source, hall.spec.base_model)
            if note is not None:
                hall.events.note(f"job {spec.name}: {note}")
        prints = fingerprint(spec, self._fingerprint(data, adapter))
        checkpoint = self._checkpoint(folder, prints) if resume else None
        shards = [shard_name(stage) for stage in range(hall.team.stages)]
        manifests = ManifestWriter(folder / folders.CHECKPOINTS, self._writers, shards, prints)
        manifests.start(checkpoint.step if checkpoint else 0)
        here = self._home(spec.name) in (None, hall.team.replica)
        shard = site.join(spec, data, adapter, folder, checkpoint) if here else None
        job = TrainingJob(spec, data, shard)
        if checkpoint is not None:
            job.restore(checkpoint.state, step=checkpoint.step)
        try:
            output = JobOutput(folder, manifests, targets=adapter.targets, checkpoint=checkpoint)
        except OutputError:
            self.leaves.append(Leave(spec.name, job.step, save=False))
            raise
        self._given[spec.name] = given
        self.adapters[spec.name] = adapter
        self.outputs[spec.name] = output
        report = data.training.report
        hall.events.ready(spec.name, report, done=job.step, total_steps=job.total_steps)
        return job

    def tell(self, jobs: Sequence[TrainingJob]) -> None:
        """Let the other stages hold these jobs too; each rank answers with ``ready``."""
        wanted = [
            {
                "name": job.name,
                "spec": self._given[job.name].model_dump_json(exclude_unset=True),
                "folder": str(self.outputs[job.name].folder),
                "step": job.step,
                "home": self._home(job.name),
            }
            for job in jobs
        ]
        self._hall.team.post.publish({"kind": "jobs", "jobs": wanted})

    def _home(self, job: str) -> int | None:
        return None if self.homes is None else self.homes[job]

    def withdraw(self, job: TrainingJob) -> None:
        """Another stage cannot hold it."""
        self.outputs.pop(job.name).close()
        self.leaves.append(Leave(job.name, job.step, save=False))

    # --- for jobs that come while the run goes on

    def load(self, spec: JobSpec) -> tuple[JobSpec, JobData]:
        """See :class:`lorafusion.training.arrivals.Welcome`, as the three below."""
        return self._hall.load(spec)

    def enter(self, arrival: Arrival, data: JobData) -> TrainingJob:
        """Its folder may hold what it has done before."""
        if data.longest > self._capacity:
            raise DataError(
                f"job {arrival.spec.name!r}: its longest sample has {data.longest} tokens, and a "
                f"microbatch of this run holds {self._capacity}. Lower max_seq_len, or serve with "
                "a larger --capacity."
            )
        folders.prepare_job_folder(arrival.folder, resume=True, overwrite=False)
        job = self.put(arrival.spec, data, arrival.folder, resume=True)
        job.weight = arrival.weight
        if self._hall.team.others:
            self.tell([job])
        return job

    def turn_away(self, arrival: Arrival, error: Exception | str) -> None:
        """It has failed before it was anywhere."""
        name = arrival.spec.name
        self.failed[name] = self._hall.failed(arrival.spec, arrival.folder, error)

    def give_up(self, job: TrainingJob, reason: str) -> None:
        """It is on this stage, and another cannot hold it."""
        folder = self.outputs[job.name].folder
        self.withdraw(job)
        self.failed[job.name] = self._hall.failed(job.spec, folder, reason)

    def _checkpoint(self, folder: Path, prints: dict[str, Json]) -> Checkpoint | None:
        found = newest(folder / folders.CHECKPOINTS, report=self._hall.events.note)
        if found is not None:
            check_fingerprint(found, prints)
        return found

    def _fingerprint(self, data: JobData, adapter: ResolvedAdapter) -> dict[str, Json]:
        spec = self._hall.spec
        prints: dict[str, Json] = {
            "base": self._hash,
            "data": data.training.content_hash,
            "held_out": data.held_out.content_hash,
            "dtype": spec.dtype,
            "deterministic": spec.deterministic,
        }
        if adapter.source is not None:
            prints["init_from"] = adapter.source.digest()
        # Rounding depends on how a GEMM is cut over threads; elsewhere that is within tolerance.
        threads = {"threads": self._hall.options.threads} if spec.deterministic else {}
        return {**prints, **threads}
