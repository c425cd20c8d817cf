"""What both sides train on, written down plainly: samples, batches, rates, initial weights.

``FOLDER/run.json``, and for each job ``FOLDER/<job>/`` with ``job.json``, ``samples.npz`` and
``adapter``: what ``baseline.py`` reads. ``FOLDER/spec.json`` is the same for our own training.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorafusion.adapters.bank import AdapterBank, ResidentAdapter
from lorafusion.adapters.initial import resolve_adapter
from lorafusion.adapters.lora import LoraConfig
from lorafusion.adapters.peft_format import StoredAdapter, save_adapter
from lorafusion.bench.settings import Settings
from lorafusion.data.order import epoch_order
from lorafusion.data.tokenizer import Tokenizer, load_tokenizer
from lorafusion.errors import BenchError, DataError
from lorafusion.files import token_cache, write_text_atomic
from lorafusion.jobs.schema import EvalConfig, JobSpec, RunSpec
from lorafusion.models.load import Base, load_base
from lorafusion.models.refusals import longest_sample
from lorafusion.training.data import JobData
from lorafusion.training.schedule import learning_rate

SPEC_FILE = "spec.json"
ATTENTION = "sdpa"
_OPTIMIZER = ("adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm")
_IGNORED = -100
_WARM_UP_JOBS = 4


@dataclass(frozen=True)
class JobInputs:
    """How much a job trains in one turn."""

    name: str
    steps: int
    samples: int
    tokens: int
    trained_tokens: int


def write_inputs(
    settings: Settings, folder: Path, *, status: Callable[[str], None]
) -> tuple[JobInputs, ...]:
    """Write the inputs for every dropout into ``folder/dropout-<p>``.

    Raises:
        ModelError: The base cannot be used.
        DataError: A job's data cannot be used.
        AdapterError: A job's targets do not fit the base.
        BenchError: A job's adapter method is not one that PEFT can be given.
    """
    status(f"loading {settings.spec.base_model}")
    base = load_base(settings.spec.base_model, settings.spec.dtype)
    tokenizer = load_tokenizer(settings.spec.base_model)
    bank = AdapterBank(base.model)
    written: dict[str, JobInputs] = {}
    for dropout in settings.dropouts:
        spec = _fitted(spec_of(settings, dropout), base)
        target = inputs_folder(folder, dropout)
        target.mkdir(parents=True, exist_ok=True)
        # Fields that nobody set stay so: a default gives way where a set value is an error.
        write_text_atomic(target / SPEC_FILE, spec.model_dump_json(indent=1, exclude_unset=True))
        _write_json(target / "run.json", _run_facts(spec))
        for job in spec.jobs:
            status(f"writing the inputs of {job.name}")
            written[job.name] = _write_job(job, target / job.name, tokenizer)
            _write_adapter(job, bank, spec.base_model, target / job.name / "adapter")
    return tuple(written.values())


def inputs_folder(folder: Path, dropout: float) -> Path:
    """Where the inputs at one dropout lie."""
    return folder / f"dropout-{dropout:g}"


def spec_of(settings: Settings, dropout: float) -> RunSpec:
    """The jobs as they are measured: at one dropout, cut to the steps, without evaluation."""
    spec = settings.spec
    jobs: list[JobSpec] = []
    for job in spec.jobs:
        if not isinstance(job.adapter, LoraConfig):
            raise BenchError(f"job {job.name!r}: only LoRA is measured, not {job.adapter.type!r}.")
        changed = {
            "adapter": job.adapter.model_copy(update={"lora_dropout": dropout}),
            "eval": EvalConfig(),
            "max_steps": min(settings.steps, job.max_steps or settings.steps),
            # Without either of the two a job is one epoch long; now it has one of them.
            "num_epochs": job.num_epochs or (1 if job.max_steps is None else None),
            "save_every": None,
            "output_dir": None,
        }
        jobs.append(job.model_copy(update=changed))
    threads = spec.threads or len(os.sched_getaffinity(0))
    return spec.model_copy(update={"jobs": tuple(jobs), "threads": threads})


def warm_up_spec(spec: RunSpec) -> RunSpec:
    """One step on two samples of each of the first jobs."""
    small = {"max_steps": 1, "global_batch_size": 2}
    jobs = spec.jobs[:_WARM_UP_JOBS]
    return spec.model_copy(update={"jobs": tuple(job.model_copy(update=small) for job in jobs)})


def sorted_batches(
    batches: Sequence[Sequence[int]], lengths: Mapping[int, int], *, seed: int
) -> list[list[int]]:
    """The same samples by length, in batches of the same sizes; the batches in a random order."""
    by_length = iter(sorted((i for batch in batches for i in batch), key=lambda i: lengths[i]))
    grouped = [[next(by_length) for _ in batch] for batch in batches]
    return [grouped[place] for place in epoch_order(len(grouped), seed=seed, epoch=0)]


def _fitted(spec: RunSpec, base: Base) -> RunSpec:
    """A default ``max_seq_len`` gives way to a shorter base, as in training."""
    longest = longest_sample(base.model.config)
    jobs: list[JobSpec] = []
    for job in spec.jobs:
        too_long = longest is not None and job.max_seq_len > longest
        if too_long and "max_seq_len" in job.model_fields_set:
            raise DataError(
                f"job {job.name!r}: max_seq_len {job.max_seq_len} is above what the base was made "
                f"for; allowed: up to {longest}."
            )
        jobs.append(job.model_copy(update={"max_seq_len": longest} if too_long else {}))
    return spec.model_copy(update={"jobs": tuple(jobs)})


def _run_facts(spec: RunSpec) -> dict[str, Any]:
    return {
        "base": spec.base_model,
        "dtype": spec.dtype,
        "threads": spec.threads,
        "attention": ATTENTION,
        "jobs": [job.name for job in spec.jobs],
    }


def _write_job(job: JobSpec, folder: Path, tokenizer: Tokenizer) -> JobInputs:
    data = JobData.load(job, tokenizer, token_cache())
    steps = range(1, data.order.total_steps + 1)
    drawn = [data.order.batch(step).tolist() for step in steps]
    # Numbered anew, so that the file holds no sample that is not trained on.
    numbers = {old: new for new, old in enumerate(dict.fromkeys(i for b in drawn for i in b))}
    batches = [[numbers[i] for i in batch] for batch in drawn]
    lengths = {new: int(data.training.lengths[old]) for old, new in numbers.items()}
    folder.mkdir(parents=True, exist_ok=True)
    _write_samples(folder / "samples.npz", [data.training.sample(i) for i in numbers])
    facts = {
        "name": job.name,
        "seed": job.seed,
        "batches": batches,
        "sorted_batches": sorted_batches(batches, lengths, seed=job.seed),
        "learning_rate": job.learning_rate,
        "learning_rates": [learning_rate(job, step, len(steps)) for step in steps],
        **{name: getattr(job, name) for name in _OPTIMIZER},
    }
    _write_json(folder / "job.json", facts)
    return JobInputs(
        name=job.name,
        steps=len(steps),
        samples=sum(map(len, batches)),
        tokens=sum(map(data.tokens, steps)),
        trained_tokens=sum(map(data.trained_tokens, steps)),
    )


def _write_samples(path: Path, samples: Sequence[Any]) -> None:
    labels = [np.where(sample.trained, sample.input_ids, _IGNORED) for sample in samples]
    np.savez(
        path,
        input_ids=np.concatenate([sample.input_ids for sample in samples]),
        labels=np.concatenate(labels),
        offsets=np.cumsum([0, *(len(sample.input_ids) for sample in samples)]),
    )


def _write_adapter(job: JobSpec, bank: AdapterBank, base_model: str, folder: Path) -> None:
    """The weights that our own training begins with, as a PEFT folder."""
    assert isinstance(job.adapter, LoraConfig)
    resolved = resolve_adapter(job.adapter, bank.names)
    resident = bank.add(resolved.config, resolved.targets, seed=job.seed)
    initial = resolved.initial_tensors()
    if initial is not None:
        resident.load(initial)
    factors = dict(_factors(resident))
    stored = StoredAdapter(resolved.config, base_model, factors, bank.fan_in_fan_out)
    save_adapter(folder, stored, linears=bank.linears_and_head, card="Initial weights.\n")
    bank.remove(resident.slot)


def _factors(resident: ResidentAdapter) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for name, module in resident.modules.items():
        factors = module.parameters()
        yield name, (factors["lora_A"], factors["lora_B"])


def _write_json(path: Path, value: object) -> None:
    write_text_atomic(path, json.dumps(value) + "\n")
