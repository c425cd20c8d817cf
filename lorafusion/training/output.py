"""Where one job's metrics, checkpoints and adapter go."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path

from lorafusion.adapters.card import AdapterFacts, adapter_card
from lorafusion.adapters.lora import LoraConfig
from lorafusion.adapters.peft_format import StoredAdapter, save_adapter
from lorafusion.jobs.schema import JobSpec
from lorafusion.training.checkpoint import Checkpoint, CheckpointWriter, Json
from lorafusion.training.folders import ADAPTER, CHECKPOINTS
from lorafusion.training.job import StepResult, TrainingJob
from lorafusion.training.metrics import JobMetrics
from lorafusion.training.result import JobResult, JobState

# Settings that do not change what is trained: they may differ when a job is resumed.
_FREE = {"output_dir", "logging_steps", "save_every"}
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


class JobOutput:
    """The files of one job. Methods raise OutputError or CheckpointError: that job then fails."""

    def __init__(
        self,
        folder: Path,
        writers: Executor,
        *,
        fingerprint: Mapping[str, Json],
        checkpoint: Checkpoint | None,
    ) -> None:
        """``checkpoint``: what the job resumes from; later metrics are removed."""
        self.folder = folder
        self._fingerprint = fingerprint
        self._metrics = JobMetrics(folder, resume_step=checkpoint.step if checkpoint else None)
        self._writer = CheckpointWriter(folder / CHECKPOINTS, writers)
        self._saved = checkpoint.step if checkpoint else None
        self._closed = False

    def record_step(self, job: TrainingJob, result: StepResult, *, tokens_per_s: float) -> None:
        """Metrics of a step, and a checkpoint where one is due."""
        if result.step in (1, job.total_steps) or result.step % job.spec.logging_steps == 0:
            values = {name: value for name, value in vars(result).items() if name != "step"}
            self._metrics.train(result.step, {**values, "tokens_per_s": tokens_per_s})
        every = job.spec.save_every
        if result.step == job.total_steps or (every is not None and result.step % every == 0):
            self.save(job)

    def record_eval(self, step: int, loss: float, tokens: int) -> None:
        """Metrics of an evaluation after ``step``."""
        self._metrics.eval(step, {"loss": loss, "tokens": tokens})

    def save(self, job: TrainingJob) -> None:
        """A checkpoint of the job's last finished step, if there is none yet."""
        if job.step == 0 or job.step == self._saved:
            return
        self._metrics.sync()
        tensors, state = job.checkpoint()
        self._writer.save(job.step, tensors=tensors, state=state, fingerprint=self._fingerprint)
        self._saved = job.step

    def export(
        self,
        job: TrainingJob,
        *,
        base_model: str,
        linears: Sequence[str],
        fan_in_fan_out: bool,
    ) -> Path:
        """Write the PEFT folder, see :func:`save_adapter`."""
        config = job.adapter.config
        assert isinstance(config, LoraConfig)
        modules = {
            name: (module.parameters()["lora_A"], module.parameters()["lora_B"])
            for name, module in job.adapter.modules.items()
        }
        folder = self.folder / ADAPTER
        card = adapter_card(_facts(job, config, base_model))
        adapter = StoredAdapter(config, base_model, modules, fan_in_fan_out)
        save_adapter(folder, adapter, linears=linears, card=card)
        return folder

    def withdraw(self) -> None:
        """Remove an adapter that an earlier pause left: a failed job has none."""
        shutil.rmtree(self.folder / ADAPTER, ignore_errors=True)

    def close(self) -> None:
        """Wait until everything is on the disk. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self._writer.close()
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
