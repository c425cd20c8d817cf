"""What of a job every rank works out for itself, from the job file and the base's config."""

from __future__ import annotations

from typing import Any

from lorafusion.adapters.initial import ResolvedAdapter, resolve_adapter
from lorafusion.adapters.lora import LoraConfig
from lorafusion.data.tokenizer import Tokenizer
from lorafusion.errors import DataError
from lorafusion.files import token_cache
from lorafusion.jobs.schema import JobSpec
from lorafusion.models.refusals import longest_sample
from lorafusion.module_names import ModuleNames
from lorafusion.training.data import JobData


def load_data(spec: JobSpec, config: Any, tokenizer: Tokenizer) -> tuple[JobSpec, JobData]:
    """The job's samples, and the job with the length that the base allows.

    Raises:
        DataError: A file cannot be used, or nothing is left to train on.
    """
    spec = _fit_length(spec, config)
    return spec, JobData.load(spec, tokenizer, token_cache())


def resolve(spec: JobSpec, names: ModuleNames) -> tuple[JobSpec, ResolvedAdapter]:
    """The job's adapter on the base, and the job with its settings completed.

    Raises:
        AdapterError: See :func:`resolve_adapter`.
    """
    assert isinstance(spec.adapter, LoraConfig)
    adapter = resolve_adapter(spec.adapter, names)
    return spec.model_copy(update={"adapter": adapter.config}), adapter


def _fit_length(spec: JobSpec, config: Any) -> JobSpec:
    """A default ``max_seq_len`` gives way to a shorter base; one that was set does not."""
    longest = longest_sample(config)
    if longest is None or spec.max_seq_len <= longest:
        return spec
    if "max_seq_len" in spec.model_fields_set:
        raise DataError(
            f"job {spec.name!r}: max_seq_len {spec.max_seq_len} is above what the base was "
            f"made for; allowed: up to {longest}."
        )
    return spec.model_copy(update={"max_seq_len": longest})
