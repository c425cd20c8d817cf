"""What a job file may hold. Frozen, unknown fields are refused, nothing is converted.

Only the rules of single fields stand here; those between fields and between jobs are in
``checks.py``. The docstring under a field is its description in the editors' schema and the docs.
"""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from lorafusion.adapters.lora import LoraConfig
from lorafusion.adapters.registry import METHODS, AdapterConfig
from lorafusion.files import expand_path

NAME_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]*$"
NAME_RULE = "1 to 64 letters, digits, '.', '_' and '-', starting with a letter or digit"


def _path(text: str) -> str:
    if "\0" in text:
        raise PydanticCustomError("null_character", "A path cannot hold the null character")
    return expand_path(text)


PathText = Annotated[str, Field(min_length=1), AfterValidator(_path)]
Count = Annotated[int, Field(ge=1)]
Unit = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]

if TYPE_CHECKING:
    AnyAdapter = AdapterConfig
else:
    AnyAdapter = functools.reduce(operator.or_, (method.config for method in METHODS.values()))
    if len(METHODS) > 1:  # pydantic refuses a discriminator on a union of one
        AnyAdapter = Annotated[AnyAdapter, Field(discriminator="type")]


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class DatasetConfig(_Strict):
    """Where samples come from."""

    path: PathText
    """A local ``.jsonl`` file, one JSON object a line. ``~`` and ``$VARIABLES`` are expanded."""
    type: Literal["prompt_completion", "messages"] | None = None
    """Format of a row: columns ``prompt`` and ``completion``, or ``messages``. null: found by the
    columns."""


class EvalConfig(_Strict):
    """Held-out loss: on rows kept out of the training data, or on a file of its own."""

    val_size: Annotated[int, Field(ge=0)] = 0
    """Rows of the dataset that are held out for evaluation."""
    dataset: DatasetConfig | None = None
    """A held-out file, instead of ``val_size``."""
    every: Count | None = None
    """Steps between evaluations. null: before the first and after the last step only."""


class JobSpec(_Strict):
    """One adapter to train: data, method, hyper-parameters."""

    name: Annotated[
        str,
        Field(
            pattern=NAME_PATTERN,
            min_length=1,
            max_length=64,
            json_schema_extra={"x-allowed": NAME_RULE},
        ),
    ]
    """Name of the job, unique in the file (case does not count); also names its output folder."""
    dataset: DatasetConfig
    """What to train on."""
    adapter: AnyAdapter = LoraConfig()
    """The adapter method and its settings."""
    learning_rate: Positive = 2e-4
    """Peak learning rate of AdamW, per step."""
    lr_scheduler: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape of the learning rate after warm-up; linear and cosine fall to 0 at the last step."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of all steps in which the rate rises from 0 to its peak."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps in which the rate rises, instead of ``warmup_ratio``."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay, per step and unit of learning rate."""
    adam_beta1: Unit = 0.9
    """Decay of AdamW's mean of gradients, per step."""
    adam_beta2: Unit = 0.999
    """Decay of AdamW's mean of squared gradients, per step."""
    adam_epsilon: Positive = 1e-8
    """Added to the root of the mean of squared gradients."""
    max_grad_norm: Positive | None = 1.0
    """The job's gradient is scaled down to this Euclidean norm. null: no clipping."""
    global_batch_size: Count = 8
    """Samples per optimizer step. How they are cut into microbatches is the planner's affair."""
    num_epochs: Count | None = None
    """Passes over the dataset. With ``max_steps``, whichever ends first; with neither, 1."""
    max_steps: Count | None = None
    """Optimizer steps. Without ``num_epochs``, passes are repeated until this many are done."""
    max_seq_len: Annotated[int, Field(ge=2)] = 512
    """Longest sample in tokens; longer ones are cut, and counted in the report."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the initial weights, the order of samples, dropout and the held-out rows."""
    eval: EvalConfig = EvalConfig()
    """Held-out evaluation."""
    logging_steps: Count = 1
    """Steps between lines of the metrics."""
    save_every: Count | None = None
    """Steps between checkpoints. null: none on a schedule."""
    output_dir: PathText | None = None
    """Folder of this job's adapter, metrics and checkpoints. null: the run's folder / ``name``."""
    max_bad_steps: Count = 3
    """Steps in a row without a finite loss and gradient after which the job fails."""


class RunSpec(_Strict):
    """A run: the base, how it is run, and the jobs that share it."""

    base_model: PathText
    """The frozen causal LM: a Hugging Face hub id, or a folder."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Number format of the base and of its activations."""
    capacity: Literal["auto"] | Count = "auto"
    """Most tokens in one microbatch. auto: chosen from the memory and the jobs."""
    deterministic: bool = False
    """Bit-exact: a job gives equal bytes alone and with any neighbours. Costs speed."""
    threads: Count | None = None
    """CPU threads. null: as many as there are cores."""
    output_dir: PathText | None = None
    """Folder of the run. A folder per job is made in it."""
    jobs: Annotated[tuple[JobSpec, ...], Field(min_length=1)]
    """The jobs, with ``defaults`` merged in."""
