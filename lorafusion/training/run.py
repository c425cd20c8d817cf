"""A whole run in one process: load the base, prepare the jobs, train, say what came of it."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from lorafusion.adapters.bank import AdapterBank
from lorafusion.adapters.initial import (
    ResolvedAdapter,
    note_on_base,
    overwritten_by,
    resolve_adapter,
)
from lorafusion.adapters.lora import LoraConfig
from lorafusion.data.tokenizer import Tokenizer, load_tokenizer
from lorafusion.errors import (
    AdapterError,
    CheckpointError,
    DataError,
    LorafusionError,
    ModelError,
    OutputError,
)
from lorafusion.files import token_cache, write_text_atomic
from lorafusion.jobs.schema import JobSpec, RunSpec
from lorafusion.models.load import Base, load_base
from lorafusion.models.refusals import longest_sample
from lorafusion.models.stage import Stage
from lorafusion.training import folders
from lorafusion.training.checkpoint import Checkpoint, Json, check_fingerprint, newest
from lorafusion.training.data import JobData
from lorafusion.training.events import Events
from lorafusion.training.executor import Executor
from lorafusion.training.generation import held_out_generation
from lorafusion.training.job import TrainingJob
from lorafusion.training.loop import TrainingLoop, Workplace
from lorafusion.training.output import JobOutput, fingerprint
from lorafusion.training.result import Generation, JobResult, RunResult

RESULT_FILE = "result.json"
# Fewer rows a microbatch leave the GEMMs small; twice as many gained nothing on two CPU cores.
AUTO_CAPACITY = 2048


@dataclass(frozen=True)
class RunOptions:
    """How a run is to be done, beside what the job file says.

    Attributes:
        output: Folder of the run.
        resume: Go on from each job's newest checkpoint.
        overwrite: Remove an earlier run's results first.
        threads: CPU threads in use, part of what bits depend on.
        should_stop: Asked between microbatches; a reason means stop.
        should_stop_job: Asked of a job after its steps and evals; a reason means pause it.
        generations: Let the base and each finished adapter answer one held-out prompt.
    """

    output: Path
    resume: bool
    overwrite: bool
    threads: int
    should_stop: Callable[[], str | None]
    should_stop_job: Callable[[str], str | None]
    generations: bool = False


def train(spec: RunSpec, options: RunOptions, events: Events) -> Generator[None, None, RunResult]:
    """Train all jobs of ``spec`` at once, step by step: a generator that returns the result.

    It yields after each microbatch, when all that ``events`` was told of is done. A job that cannot
    be trained fails alone, and its result says why.

    Raises:
        OutputError: An output folder cannot be used.
        ModelError: The base cannot be used.
    """
    started = time.perf_counter()
    with folders.claim_folder(options.output):
        _keep_starting_points(spec, options.output)
        for job in spec.jobs:
            folders.prepare_job_folder(
                job_folder(job, options.output), resume=options.resume, overwrite=options.overwrite
            )
        events.status(f"loading {spec.base_model}")
        base = load_base(spec.base_model, spec.dtype)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints") as writers:
            run = _Run(spec, options, events, base, writers)
            run.prepare()
            result = yield from run.train(started)
        text = json.dumps(result.to_dict(), indent=2, allow_nan=False)
        write_text_atomic(options.output / RESULT_FILE, text + "\n")
    return result


def job_folder(job: JobSpec, output: Path) -> Path:
    """Where a job's results go."""
    return Path(job.output_dir) if job.output_dir else output / job.name


def _keep_starting_points(spec: RunSpec, output: Path) -> None:
    """Refuse a run that would write over an adapter that a job of it starts from."""
    outputs = [job_folder(job, output) for job in spec.jobs]
    for job in spec.jobs:
        init_from = getattr(job.adapter, "init_from", None)
        place = overwritten_by(init_from, outputs) if init_from else None
        if place is not None:
            raise OutputError(
                f"job {job.name!r} starts from {init_from}, which lies in {place}, where this run "
                "writes its results. Choose another output folder, or copy the adapter elsewhere."
            )


class _Run:
    """The pieces of one run, between loading the base and the result."""

    def __init__(
        self,
        spec: RunSpec,
        options: RunOptions,
        events: Events,
        base: Base,
        writers: ThreadPoolExecutor,
    ) -> None:
        self._spec = spec
        self._options = options
        self._events = events
        self._base = base
        self._writers = writers
        self._hash = base.fingerprint()
        self._stage = Stage(base)
        self._bank = AdapterBank(base.model)
        self._tokenizer: Tokenizer = load_tokenizer(spec.base_model)
        self._jobs: list[TrainingJob] = []
        self._outputs: dict[str, JobOutput] = {}
        self._failed: dict[str, JobResult] = {}
        self._generations: dict[str, Generation] = {}

    def prepare(self) -> None:
        """Data, adapter and output of every job; what cannot be prepared has failed."""
        for spec in self._spec.jobs:
            self._events.status(f"preparing {spec.name}")
            try:
                self._prepare_job(spec)
            except (DataError, AdapterError, ModelError, OutputError, CheckpointError) as error:
                folder = str(job_folder(spec, self._options.output))
                failed = JobResult(spec.name, "failed", reason=str(error), folder=folder)
                self._failed[spec.name] = failed
                self._events.ended(self._failed[spec.name])

    def train(self, started: float) -> Generator[None, None, RunResult]:
        """Run the loop and gather the results."""
        loop = TrainingLoop(
            self._workplace(),
            self._jobs,
            self._outputs,
            on_removed=self._leave,
        )
        yield from loop.run()
        self._report_held(loop)
        after = self._base.fingerprint()
        assert after == self._hash, "the base's weights changed during the run"
        results = {**self._failed, **loop.results}
        return RunResult(
            jobs=tuple(
                replace(results[job.name], generation=self._generations.get(job.name))
                for job in self._spec.jobs
            ),
            tokens_per_s=loop.clock.total_rate,
            training_s=loop.clock.seconds,
            wall_s=time.perf_counter() - started,
            peak_rss_mb=peak_rss_mb(),
            base_sha256=self._hash,
        )

    def _leave(self, job: TrainingJob) -> None:
        """Free the slot of a job that has ended, after its adapter's last answer."""
        if self._options.generations and job.finished:
            generation = held_out_generation(self._base, self._bank, self._tokenizer, job)
            if generation is not None:
                self._generations[job.name] = generation
        self._bank.remove(job.slot)

    def _workplace(self) -> Workplace:
        capacity = self._spec.capacity
        if capacity == "auto":
            capacity = max([AUTO_CAPACITY, *(job.data.longest for job in self._jobs)])
        executor = Executor(self._stage, self._bank, deterministic=self._spec.deterministic)
        return Workplace(
            executor=executor,
            capacity=capacity,
            base_model=self._spec.base_model,
            linears=self._bank.linears_and_head,
            fan_in_fan_out=self._bank.fan_in_fan_out,
            events=self._events,
            should_stop=self._options.should_stop,
            should_stop_job=self._options.should_stop_job,
        )

    def _prepare_job(self, spec: JobSpec) -> None:
        resolved = self._resolve_adapter(spec)
        spec = self._fit_length(spec).model_copy(update={"adapter": resolved.config})
        data = JobData.load(spec, self._tokenizer, token_cache())
        prints = fingerprint(spec, self._fingerprint(data, resolved))
        folder = job_folder(spec, self._options.output)
        checkpoint = self._checkpoint(folder, prints)
        adapter = self._bank.add(resolved.config, resolved.targets, seed=spec.seed)
        try:
            initial = resolved.initial_tensors()
            if initial is not None:
                adapter.load(initial)
            job = TrainingJob(spec, data, adapter, deterministic=self._spec.deterministic)
            if checkpoint is not None:
                job.restore(checkpoint)
            output = JobOutput(folder, self._writers, fingerprint=prints, checkpoint=checkpoint)
        except LorafusionError:
            self._bank.remove(adapter.slot)
            raise
        self._jobs.append(job)
        self._outputs[spec.name] = output
        self._events.ready(
            spec.name, data.training.report, done=job.step, total_steps=job.total_steps
        )

    def _resolve_adapter(self, spec: JobSpec) -> ResolvedAdapter:
        assert isinstance(spec.adapter, LoraConfig)
        resolved = resolve_adapter(spec.adapter, self._bank.names)
        if resolved.source is not None:
            note = note_on_base(resolved.source, self._spec.base_model)
            if note is not None:
                self._events.note(f"job {spec.name}: {note}")
        return resolved

    def _fit_length(self, spec: JobSpec) -> JobSpec:
        """A default ``max_seq_len`` gives way to a shorter base; one that was set does not."""
        longest = longest_sample(self._base.model.config)
        if longest is None or spec.max_seq_len <= longest:
            return spec
        if "max_seq_len" in spec.model_fields_set:
            raise DataError(
                f"job {spec.name!r}: max_seq_len {spec.max_seq_len} is above what the base was "
                f"made for; allowed: up to {longest}."
            )
        return spec.model_copy(update={"max_seq_len": longest})

    def _checkpoint(self, folder: Path, prints: dict[str, Json]) -> Checkpoint | None:
        if not self._options.resume:
            return None
        found = newest(folder / folders.CHECKPOINTS, report=self._events.note)
        if found is not None:
            check_fingerprint(found, prints)
        return found

    def _fingerprint(self, data: JobData, adapter: ResolvedAdapter) -> dict[str, Json]:
        prints: dict[str, Json] = {
            "base": self._hash,
            "data": data.training.content_hash,
            "held_out": data.held_out.content_hash,
            "dtype": self._spec.dtype,
            "deterministic": self._spec.deterministic,
        }
        if adapter.source is not None:
            prints["init_from"] = adapter.source.digest()
        # Rounding depends on how a GEMM is cut over threads; elsewhere that is within tolerance.
        return {**prints, "threads": self._options.threads} if self._spec.deterministic else prints

    def _report_held(self, loop: TrainingLoop) -> None:
        if self._spec.deterministic and loop.results:
            peak = sum(job.gradients.held_bytes_peak for job in self._jobs)
            self._events.note(
                f"deterministic: at most {peak / 1e6:.1f} MB of gradients were held until their "
                "sample's turn (sum of the jobs' peaks)."
            )


def peak_rss_mb() -> float:
    """Most memory this process has held so far, in MB of 10^6 bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would start from what the parent process held
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
