"""Where one job's metrics, checkpoints and adapter go, on rank 0."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorafusion.adapters.card import AdapterFacts, adapter_card
from lorafusion.adapters.lora import LoraConfig
from lorafusion.adapters.peft_format import StoredAdapter, save_adapter
from lorafusion.errors import StepError
from lorafusion.jobs.schema import JobSpec
from lorafusion.training.checkpoint import Checkpoint, Json
from lorafusion.training.folders import ADAPTER
from lorafusion.training.job import StepResult, TrainingJob
from lorafusion.training.manifest import ManifestWriter
from lorafusion.training.metrics import JobMetrics
from lorafusion.training.queues import checkpoint_is_due
from lorafusion.training.result import JobResult, JobState
from lorafusion.training.shard_writer import Shard

# Settings that do not change what is trained: they may differ when a job is resumed.
_FREE = {"name", "output_dir", "logging_steps", "save_every", "sweep"}
_CARD_SETTINGS = (
    "learning_rate",
    "lr_scheduler",
    "global_batch_size",
    "weight_decay",
    "max_grad_norm",
    "max_seq_len",
    "seed",
)


def fingerprint(spec: JobSpec, run: Mapping[str, Json]) -> dict[str, Json]:
    """What a job's result depends on. ``run``: the part that is not in its own settings."""
    job = spec.model_dump(mode="json", exclude=_FREE)
    # A folder to start from counts by its content, which ``run`` holds, and a pattern by its order.
    job["adapter"] = {
        name: list(value.items()) if isinstance(value, dict) else value
        for name, value in job["adapter"].items()
        if name != "init_from" and value != {}
    }
    return {"job": job, **run}


@dataclass(frozen=True)
class ExportFacts:
    """What an exported adapter says of the base.

    Attributes:
        base_model: Its name.
        linears: All of its linears, the head among them.
        fan_in_fan_out: Whether they store their weights as [in, out].
    """

    base_model: str
    linears: Sequence[str]
    fan_in_fan_out: bool


class JobOutput:
    """The files of one job. Methods raise OutputError or CheckpointError: that job then fails."""

    def __init__(
        self,
        folder: Path,
        manifests: ManifestWriter,
        *,
        targets: Sequence[str],
        checkpoint: Checkpoint | None,
    ) -> None:
        """Nothing is written yet.

        Args:
            folder: Of the job.
            manifests: Makes its checkpoints count.
            targets: Full names of the adapted linears on all stages, in the base's order.
            checkpoint: What the job resumes from; later metrics are removed.
        """
        self.folder = folder
        self._targets = targets
        self._metrics = JobMetrics(folder, resume_step=checkpoint.step if checkpoint else None)
        self._manifests = manifests
        self._expected = checkpoint.step if checkpoint else 0
        self._closed = False

    def record_step(self, job: TrainingJob, result: StepResult, *, tokens_per_s: float) -> None:
        """Metrics of a step, and a checkpoint where one is due."""
        if result.step in (1, job.total_steps) or result.step % job.spec.logging_steps == 0:
            values = {name: value for name, value in vars(result).items() if name != "step"}
            self._metrics.train(result.step, {**values, "tokens_per_s": tokens_per_s})
        if checkpoint_is_due(job.spec, job.step, job.total_steps):
            self.expect(job)

    def record_eval(self, step: int, loss: float, tokens: int) -> None:
        """Metrics of an evaluation after ``step``."""
        self._metrics.eval(step, {"loss": loss, "tokens": tokens})

    def expect(self, job: TrainingJob) -> None:
        """All stages save the job's last finished step, unless they have."""
        if job.step != self._expected:
            self._metrics.sync()
            self._manifests.expect(job.step, job.state())
            self._expected = job.step

    def add_shard(self, step: int, shard: Shard) -> None:
        """A stage has written its part of a checkpoint."""
        self._manifests.add(step, shard)

    def complete(self) -> bool:
        """Whether the last checkpoint that was asked for is on the disk; does not wait."""
        return self._expected == 0 or self._manifests.written == self._expected

    def export(self, job: TrainingJob, facts: ExportFacts) -> Path:
        """Write the PEFT folder from the last checkpoint, see :func:`save_adapter`.

        To be called once :meth:`complete`, from any thread, while nothing else is called here.

        Raises:
            StepError: A weight is not finite: an update may overflow, and after the last one no
                loss would show it.
        """
        config = job.spec.adapter
        assert isinstance(config, LoraConfig)
        names = [f"{name}.{factor}" for name in self._targets for factor in ("lora_A", "lora_B")]
        tensors = self._manifests.newest().tensors(names)
        bad = [name for name in names if not bool(tensors[name].isfinite().all())]
        if bad:
            raise StepError(
                f"after step {job.step} {len(bad)} of its {len(names)} tensors are not finite, "
                f"such as {bad[0]}. Lower the learning rate."
            )
        modules = {
            name: (tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"]) for name in self._targets
        }
        folder = self.folder / ADAPTER
        card = adapter_card(_facts(job, config, facts.base_model))
        adapter = StoredAdapter(config, facts.base_model, modules, facts.fan_in_fan_out)
        save_adapter(folder, adapter, linears=facts.linears, card=card)
        return folder

    def withdraw(self) -> None:
        """The job has failed: no checkpoint of it is finished, nor is an earlier adapter left."""
        self._manifests.drop()
        shutil.rmtree(self.folder / ADAPTER, ignore_errors=True)

    def close(self) -> None:
        """Wait until everything is on the disk. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self._manifests.close()
        finally:
            self._metrics.close()


def job_result(
    job: TrainingJob, state: JobState, *, reason: str | None = None, adapter: Path | None = None
) -> JobResult:
    """How ``job`` stands now."""
    progress = job.progress
    return JobResult(
        name=job.name,
        state=state,
        reason=reason,
        steps=job.step,
        total_steps=job.total_steps,
        loss_first=progress.loss_first,
        loss_last=progress.loss_last,
        eval_before=progress.eval_before,
        eval_after=progress.eval_after,
        adapter_dir=None if adapter is None else str(adapter),
        tokens=progress.tokens,
    )


def _facts(job: TrainingJob, config: LoraConfig, base_model: str) -> AdapterFacts:
    spec = job.spec
    progress = job.progress
    return AdapterFacts(
        name=job.name,
        base_model=base_model,
        dataset=spec.dataset.path,
        config=config,
        settings={name: getattr(spec, name) for name in _CARD_SETTINGS},
        steps=job.step,
        tokens=progress.tokens,
        loss_first=progress.loss_first,
        loss_last=progress.loss_last,
        eval_before=progress.eval_before,
        eval_after=progress.eval_after,
    )
