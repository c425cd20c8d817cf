"""What other tools call our fields. Their names are accepted where they mean the same.

PEFT, TRL, axolotl, LLaMA-Factory, torchtune and litgpt; a dotted name stands in one of their
mappings, such as ``optimizer: {lr: 1e-4}``. ``settings.py`` lists what has no field of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from lorafusion.jobs.yaml_tree import Scalar

# No fields: the two are multiplied, see batch_fields.py. No key of a file can name them.
PER_DEVICE = ("", "per_device")
ACCUMULATION = ("", "accumulation")
T = TypeVar("T")


@dataclass(frozen=True)
class Alias:
    """One name of another tool.

    Attributes:
        target: Our field, as a path in the job (or in the file's top).
        values: Their values and what ours are; others stay as they are.
        idle: Values that ask for nothing, and are left out.
        remarks: What to add to the note about a value.
        names: Text is a list of names with commas between.
        whole: Numbers are decimal there, so that ``3.0`` is 3.
        second: A list of two is meant: the second is for this field.
    """

    target: tuple[str, ...]
    values: Mapping[Scalar, Scalar] = field(default_factory=dict[Scalar, Scalar])
    idle: tuple[Scalar, ...] = ()
    remarks: Mapping[Scalar, str] = field(default_factory=dict[Scalar, str])
    names: bool = False
    whole: bool = False
    second: tuple[str, ...] = ()


def lookup(table: Mapping[Scalar, T], value: object) -> T | None:
    """The entry of ``value``, where 1, 1.0 and true are three values."""
    if not isinstance(value, Scalar):
        return None
    return next((v for k, v in table.items() if type(k) is type(value) and k == value), None)


def _same(table: dict[str, str]) -> dict[str, Alias]:
    """Names that mean exactly what ours mean."""
    return {
        name: Alias(tuple(target.split(".")))
        for target, names in table.items()
        for name in names.split()
    }


TOP = {
    **_same(
        {
            "base_model": "model_name_or_path base_model_name_or_path model_name model "
            "checkpoint_dir checkpointer.checkpoint_dir",
            "dtype": "torch_dtype precision",
            "threads": "num_threads",
            "output_dir": "out_dir",
        }
    ),
    # Any torch device computes in bfloat16, so axolotl's `auto` (where it can) is always yes.
    "bf16": Alias(("dtype",), values={True: "bfloat16", "auto": "bfloat16"}, idle=(False, None)),
    "fp16": Alias(("dtype",), values={True: "float16"}, idle=(False, None)),
}

_TARGETS = ("adapter", "target_modules")
JOB = {
    **_same(
        {
            "name": "run_name",
            "dataset": "train_dataset",
            "dataset.path": "dataset_name dataset_path data_path file_name hf_hub_url",
            "dataset.name": "dataset_config dataset_config_name subset",
            "dataset.split": "dataset_train_split",
            "dataset.type": "formatting",
            "dataset.train_on_inputs": "train_on_inputs train_on_input train_on_prompt",
            "dataset.chat_template": "chat_template chat_template_path",
            "dataset.columns": "message_property_mappings",
            "dataset.columns.text": "dataset_text_field field",
            "dataset.columns.messages": "field_messages",
            "dataset.columns.role": "message_field_role",
            "dataset.columns.content": "message_field_content",
            "dataset.columns.instruction": "field_instruction",
            "dataset.columns.input": "field_input",
            "dataset.columns.output": "field_output",
            "dataset.columns.system": "field_system",
            "adapter.r": "lora_r lora_rank rank",
            "adapter.lora_alpha": "lora_alpha alpha",
            "adapter.lora_dropout": "lora_dropout dropout",
            "adapter.target_modules": "target_modules",
            "adapter.use_rslora": "use_rslora peft_use_rslora",
            "adapter.use_dora": "use_dora peft_use_dora",
            "adapter.modules_to_save": "lora_modules_to_save modules_to_save",
            "adapter.target_parameters": "lora_target_parameters",
            "adapter.task_type": "lora_task_type",
            "adapter.fan_in_fan_out": "lora_fan_in_fan_out",
            "adapter.init_lora_weights": "peft_init_lora_weights",
            "learning_rate": "lr optimizer.lr optimizer.init_args.lr",
            "lr_scheduler": "scheduler",
            "warmup_steps": "num_warmup_steps lr_warmup_steps train.lr_warmup_steps",
            "weight_decay": "optimizer.weight_decay optimizer.init_args.weight_decay",
            "adam_epsilon": "adam_eps eps optimizer.eps optimizer.init_args.eps",
            "max_grad_norm": "gradient_clipping gradient_clip_val grad_clip clip_grad_norm "
            "train.max_norm",
            "global_batch_size": "train_batch_size train.global_batch_size",
            "num_epochs": "epochs train.epochs",
            "max_steps": "steps num_steps train.max_steps",
            "max_seq_len": "max_length sequence_len sequence_length cutoff_len max_seq_length "
            "tokenizer.max_seq_len train.max_seq_length",
            "seed": "random_seed",
            "eval.every": "eval_steps eval.interval",
            "eval.dataset": "eval_dataset",
            "eval.patience": "early_stopping_patience",
            "logging_steps": "log_every_n_steps train.log_interval",
            "save_every": "save_steps train.save_interval",
            "output_dir": "out_dir",
        }
    ),
    "num_train_epochs": Alias(("num_epochs",), whole=True),
    "val_size": Alias(("eval", "val_size"), values={0.0: 0}),
    "val_set_size": Alias(("eval", "val_size"), values={0.0: 0}),
    "lr_scheduler_type": Alias(
        ("lr_scheduler",),
        remarks={"constant": "warm-up, where it is given, applies to it (TRL would ignore it)"},
    ),
    "mask_history": Alias(("dataset", "train_on"), values={True: "last"}, idle=(False, None)),
    "assistant_only_loss": Alias(("dataset", "train_on"), values={True: "assistant"}),
    "completion_only_loss": Alias(
        ("dataset", "train_on_inputs"), values={True: False, False: True}, idle=(None,)
    ),
    "peft_type": Alias(("adapter", "type")),
    "finetuning_type": Alias(("adapter", "type")),
    "lora_target": Alias(_TARGETS, values={"all": "all-linear"}, names=True),
    "lora_target_modules": Alias(_TARGETS, idle=(None,)),
    "lora_target_linear": Alias(_TARGETS, values={True: "all-linear"}, idle=(False, None)),
    **dict.fromkeys(
        ("betas", "adam_betas", "optimizer.betas", "optimizer.init_args.betas"),
        Alias(("adam_beta1",), second=("adam_beta2",)),
    ),
    **dict.fromkeys(
        ("lora_model_dir", "adapter_name_or_path"), Alias(("adapter", "init_from"), idle=(None,))
    ),
    "per_device_train_batch_size": Alias(PER_DEVICE),
    "per_device_batch_size": Alias(PER_DEVICE),
    "micro_batch_size": Alias(PER_DEVICE),
    "train.micro_batch_size": Alias(PER_DEVICE),
    "batch_size": Alias(PER_DEVICE),
    "gradient_accumulation_steps": Alias(ACCUMULATION),
}

# Mappings of other tools whose entries are known by their dotted names.
FOREIGN_MAPPINGS = frozenset(
    {"optimizer", "optimizer.init_args", "train", "tokenizer", "checkpointer"}
)

# By our field, for every spelling of it: what other tools write there, and what ours is.
VALUES: dict[tuple[str, ...], dict[Scalar, Scalar]] = {
    ("dtype",): {
        **dict.fromkeys(("bf16", "torch.bfloat16", "bf16-true"), "bfloat16"),
        **dict.fromkeys(("fp32", "float", "torch.float32", "32-true"), "float32"),
        **dict.fromkeys(("fp64", "double", "torch.float64", "64-true"), "float64"),
    },
    ("adapter", "type"): {"LORA": "lora"},
    ("lr_scheduler",): {"constant_with_warmup": "constant"},
    ("max_steps",): {-1: None},
    ("dataset", "type"): {"completion": "text", "chat_template": "messages"},
    ("dataset", "chat_template"): {"tokenizer_default": None},
}

_NO_FLOAT16 = (
    "float16 overflows without scaling of the loss, which is not done here",
    "Write `dtype: bfloat16`, which takes the same memory.",
)
_MIXED = (
    "there is one number format: adapters are float32 in any case",
    "Write `dtype: bfloat16` or `dtype: float32`.",
)
_NOT_LORA = (
    "the base is shared by all jobs and never written to, so adapters alone are trained",
    "Write `adapter: {type: lora}`.",
)
# By our field: values that are known and cannot be had -> why, and what to write.
REFUSED_VALUES: dict[tuple[str, ...], dict[Scalar, tuple[str, str]]] = {
    ("dtype",): {
        **dict.fromkeys(("float16", "fp16", "half", "torch.float16", "16-true"), _NO_FLOAT16),
        **dict.fromkeys(("bf16-mixed", "16-mixed"), _MIXED),
        "auto": (
            "the number format is said in the file, so that it does not change with a checkpoint",
            "Write `dtype: bfloat16` or `dtype: float32`.",
        ),
    },
    ("adapter", "type"): {
        "qlora": ("the base is not quantised", "Write `adapter: {type: lora}`."),
        **dict.fromkeys(("full", "freeze"), _NOT_LORA),
    },
    ("dataset", "chat_template"): dict.fromkeys(
        ("chatml", "llama3", "alpaca", "mistral_v1", "gemma", "phi_3", "qwen_25", "jinja"),
        (
            "templates are not known by name",
            "Remove it for the tokenizer's own, or name a Jinja file.",
        ),
    ),
}

_ROWS_UNKNOWN = "how many rows there are is not known before the data are read"
_STEPS_UNKNOWN = "how many steps there are is not known before the data are read"
# By our field: why a share, such as 0.05, is refused, and what to write.
SHARES: dict[tuple[str, ...], tuple[str, str]] = {
    ("eval", "val_size"): (_ROWS_UNKNOWN, "Give the number of rows, such as `val_size: 64`."),
    ("eval", "every"): (_STEPS_UNKNOWN, "Give the number of steps, such as `every: 20`."),
    ("save_every",): (_STEPS_UNKNOWN, "Give the number of steps, such as `save_every: 100`."),
    ("logging_steps",): (_STEPS_UNKNOWN, "Give the number of steps, such as `logging_steps: 10`."),
    ("warmup_steps",): (_STEPS_UNKNOWN, "A share of all steps is called `warmup_ratio`."),
}
