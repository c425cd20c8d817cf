"""A job in Python: the job file's fields as arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, cast

from lorafusion.adapters.lora import LoraConfig
from lorafusion.adapters.registry import AdapterConfig
from lorafusion.api.check import as_tree, validated
from lorafusion.api.peft import is_peft_config, peft_fields
from lorafusion.api.rows import is_hugging_face, write_rows
from lorafusion.errors import JobError, Problem
from lorafusion.jobs.schema import DatasetConfig, EvalConfig, JobSpec

if TYPE_CHECKING:
    from typing import Unpack

    import peft
    from datasets import Dataset

    AdapterLike: TypeAlias = AdapterConfig | peft.LoraConfig | Mapping[str, Any]
    DatasetLike: TypeAlias = (
        str | Path | DatasetConfig | Mapping[str, Any] | Sequence[Mapping[str, Any]] | Dataset
    )

_ADAPTER, _EVAL = LoraConfig(), EvalConfig()


class JobSettings(TypedDict, total=False):
    """The settings of a job that have a default, see :class:`lorafusion.jobs.schema.JobSpec`."""

    learning_rate: float
    lr_scheduler: Literal["constant", "linear", "cosine"]
    warmup_ratio: float
    warmup_steps: int | None
    weight_decay: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float
    max_grad_norm: float | None
    global_batch_size: int
    num_epochs: int | None
    max_steps: int | None
    max_seq_len: int
    seed: int
    logging_steps: int
    save_every: int | None
    output_dir: str | Path | None
    max_bad_steps: int


class Job(JobSpec):
    """One adapter to train. Fields and defaults are those of a job in a job file.

    Args:
        name: Unique in a run; also names the job's output folder.
        dataset: A path or hub id, a :class:`DatasetConfig` or a mapping of its fields, a list of
            rows (mappings), or a ``datasets.Dataset``. Rows in memory are written to the cache
            folder, under a name that is a hash of their content.
        adapter: The method's config, a mapping of its fields, or a ``peft.LoraConfig`` that names
            its target modules.
        eval: Held-out evaluation; its ``dataset`` may be all that ``dataset`` may be.
        settings: ``learning_rate`` and so on.

    Raises:
        JobError: With every problem of the arguments.
    """

    def __init__(
        self,
        name: str,
        dataset: DatasetLike,
        *,
        adapter: AdapterLike = _ADAPTER,
        eval: EvalConfig | Mapping[str, Any] = _EVAL,
        **settings: Unpack[JobSettings],
    ) -> None:
        source = f"Job {name!r}"
        given: dict[str, Any] = {"name": name, **settings}
        if adapter is not _ADAPTER:
            given["adapter"] = peft_fields(adapter) if is_peft_config(adapter) else adapter
        if eval is not _EVAL:
            given["eval"] = eval
        reader = _Datasets(source)
        given["dataset"] = reader.plain(dataset, "dataset")
        if isinstance(eval, Mapping) and eval.get("dataset") is not None:
            held_out = reader.plain(eval["dataset"], "eval.dataset")
            given["eval"] = {**eval, "dataset": held_out}
        fields = validated(JobSpec, as_tree(given), source=source, found=reader.problems)
        super().__init__(**fields)


class _Datasets:
    """Turns what stands for a dataset into the fields of a config; keeps what is wrong with it."""

    def __init__(self, source: str) -> None:
        self._source = source
        self.problems: list[Problem] = []

    def plain(self, value: object, argument: str) -> object:
        """What a job file would say of it."""
        if isinstance(value, str | Path):
            return {"path": str(value)}
        if isinstance(value, DatasetConfig | Mapping):
            return cast(object, value)
        try:
            if is_hugging_face(value) or isinstance(value, list | tuple):
                rows = cast("Sequence[object]", value)
                path = write_rows(rows, source=self._source, argument=argument)
                return {"path": str(path)}
        except JobError as error:
            self.problems += error.problems
        else:
            self._refuse(value, argument)
        return {"path": "unknown"}  # keeps its place, so that the other arguments are looked at

    def _refuse(self, value: object, argument: str) -> None:
        allowed = "a path or hub id, a DatasetConfig, a list of rows, or a datasets.Dataset"
        fix = "Order and resuming need all rows: make a list of them, or write a file."
        found = f"a {type(value).__module__}.{type(value).__qualname__}"
        self.problems.append(Problem(self._source, 0, argument, found, allowed, fix))
