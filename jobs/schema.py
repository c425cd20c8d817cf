"""What a job file may hold. Frozen, unknown fields are refused, nothing is converted.

Only the rules of single fields stand here; those between fields and between jobs are in
``checks.py``. The docstring under a field is its description in the editors' schema and the docs.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError
from typing_extensions import TypeAliasType

from lorafusion.adapters.lora import LoraConfig
from lorafusion.adapters.registry import METHODS, AdapterConfig
from lorafusion.files import expand_path

NAME_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]*$"
NAME_RULE = "1 to 64 letters, digits, '.', '_' and '-', starting with a letter or digit"


def _path(text: str) -> str:
    if "\0" in text:
        raise PydanticCustomError("null_character", "A path cannot hold the null character")
    return expand_path(text)


NonEmpty = Annotated[str, Field(min_length=1)]
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


DatasetType = Literal["text", "prompt_completion", "messages", "sharegpt", "alpaca"]
TrainOn = Literal["assistant", "last", "all"]
Column = Literal[
    "text",
    "prompt",
    "completion",
    "messages",
    "role",
    "content",
    "conversations",
    "from",
    "value",
    "instruction",
    "input",
    "output",
    "system",
    "history",
]


class DatasetConfig(_Strict):
    """Where samples come from, what their rows look like, and which tokens are trained.

    ===================  ========================================================  =============
    type                 columns                                                   trained
    ===================  ========================================================  =============
    text                 ``text``                                                  every token
    prompt_completion    ``prompt``, ``completion``: texts, or lists of messages   completions
    messages             ``messages``: a list of ``{role, content}``               answers
    sharegpt             ``conversations``: a list of ``{from, value}``; may have  answers
                         ``system``
    alpaca               ``instruction``, ``output``; may have ``input``,          answers
                         ``system``, ``history``
    ===================  ========================================================  =============

    Every answer is closed by a trained end token. An assistant turn that begins a conversation
    answers nothing and is context. An alpaca row is a conversation where there is a chat template:
    the user says instruction, blank line, input. Without one it is the text ``### Instruction:``,
    ``### Input:`` (where there is one), ``### Response:``, each with its content below it and a
    blank line between them.
    """

    path: PathText
    """A local file (.jsonl, .json, .csv, .parquet, .arrow), a folder of such files of one kind, or
    the id of a dataset on the Hugging Face hub. ``~`` and ``$VARIABLES`` are expanded."""
    type: DatasetType | None = None
    """Format of a row: text (``text``), prompt_completion (``prompt``, ``completion``), messages
    (``messages``), sharegpt (``conversations``) or alpaca (``instruction``, ``output``). null:
    found by these columns."""
    name: NonEmpty | None = None
    """Subset of the dataset, as ``datasets.load_dataset`` calls it."""
    split: NonEmpty | None = None
    """Split, such as ``test`` or ``train[:1000]``. null: train. Of local files, those are meant
    whose names say so; where none says anything, all are train."""
    revision: NonEmpty | None = None
    """Branch, tag or commit of a dataset on the hub. null: its main branch."""
    data_files: NonEmpty | Annotated[tuple[NonEmpty, ...], Field(min_length=1)] | None = None
    """Files of the folder or of the hub's dataset, as names or patterns. null: all."""
    columns: Annotated[
        Mapping[Column, NonEmpty],
        Field(json_schema_extra={"x-allowed": "a mapping of our columns to those of the rows"}),
    ] = {}
    """Other names of columns and of a turn's keys, such as ``{prompt: question, completion:
    answer}``: ours first, then that of the rows."""
    train_on: TrainOn = "assistant"
    """assistant: every answer. last: only the last answer of a conversation. all: every token."""
    train_on_inputs: bool = False
    """Prompts are trained too: the same as ``train_on: all``."""
    chat_template: PathText | None = None
    """A Jinja file that conversations are written with. null: the tokenizer's own."""

    @property
    def trained(self) -> TrainOn:
        """What is trained, by ``train_on`` and ``train_on_inputs`` together."""
        return "all" if self.train_on_inputs else self.train_on

    @model_validator(mode="after")
    def _agrees(self) -> DatasetConfig:
        given = self.model_fields_set
        both = {"train_on", "train_on_inputs"} <= given
        if both and self.train_on_inputs != (self.train_on == "all"):
            raise PydanticCustomError(
                "contradiction",
                "train_on: {on} and train_on_inputs: {inputs} contradict each other; remove one",
                {"on": self.train_on, "inputs": str(self.train_on_inputs).lower()},
            )
        return self


class EvalConfig(_Strict):
    """Held-out loss: on rows kept out of the training data, or on a file of its own."""

    val_size: Annotated[int, Field(ge=0)] = 0
    """Rows of the dataset that are held out for evaluation."""
    dataset: DatasetConfig | None = None
    """A held-out file, instead of ``val_size``."""
    every: Count | None = None
    """Steps between evaluations. null: before the first and after the last step only."""
    patience: Count | None = None
    """Evaluations in a row, every ``every`` steps, without a lower loss than ever before, after
    which training stops, with the step that follows the last of them. null: it goes on."""


Value = TypeAliasType(
    "Value", "bool | int | float | str | tuple[Value, ...] | Mapping[str, Value] | None"
)
"""What may stand at a field of a job file."""


# pydantic's own schema of a value holds itself, and words for it would have no end.
_CHOICE = {
    "type": "object",
    "additionalProperties": {"x-allowed": "numbers, text, true, false, null, lists, mappings"},
}


class SweepChoice(_Strict):
    """Which job of which sweep this is. Made of ``sweep``; nobody writes it."""

    name: str
    """Of the sweep: the job's own in its file, where all of them are one."""
    choice: Annotated[Mapping[str, Value], WithJsonSchema(_CHOICE)]
    """The swept fields, by the names that the file has for them, and this job's values."""


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
    sweep: SweepChoice | None = None
    """Which choice of a sweep this job is; a file lists fields and values here instead."""


class ParallelConfig(_Strict):
    """How replicas (``--replicas``) hold the base. docs/zero.md says when this beats stages."""

    zero: Literal[0, 3] = 0
    """3: each keeps a part of every matrix of the base, and gathers a layer at a time (DeepSpeed's
    ZeRO-3). 0: each has all of it."""
    offload: Literal["none", "cpu"] = "none"
    """cpu: with ``zero: 3``, the parts are in the hosts' memory, and the layer that runs alone on
    the GPU."""


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
    recompute: Literal["auto"] | bool = "auto"
    """Keep each layer's input alone and repeat its forward in the backward: less memory, more
    time. auto: where memory asks for it."""
    threads: Count | None = None
    """CPU threads. null: as many as there are cores."""
    parallel: ParallelConfig = ParallelConfig()
    """How replicas (``--replicas``) hold the base."""
    output_dir: PathText | None = None
    """Folder of the run. A folder per job is made in it."""
    jobs: Annotated[tuple[JobSpec, ...], Field(min_length=1)]
    """The jobs, with ``defaults`` merged in."""
