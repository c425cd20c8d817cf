"""Names that users bring from other tools, and settings that are refused by name with a reason."""

from __future__ import annotations

from dataclasses import dataclass

# Other tools' names (PEFT, TRL, axolotl, LLaMA-Factory, torchtune, litgpt) -> our path in a job,
# or at the top of the file where it starts with a slash.
FOREIGN = {
    "model": "/base_model",
    "model_name": "/base_model",
    "model_name_or_path": "/base_model",
    "torch_dtype": "/dtype",
    "bf16": "/dtype",
    "fp16": "/dtype",
    "num_threads": "/threads",
    "lora_r": "adapter.r",
    "lora_rank": "adapter.r",
    "rank": "adapter.r",
    "alpha": "adapter.lora_alpha",
    "dropout": "adapter.lora_dropout",
    "lora_target": "adapter.target_modules",
    "lora_target_modules": "adapter.target_modules",
    "lora_target_linear": "adapter.target_modules",
    "peft_type": "adapter.type",
    "finetuning_type": "adapter.type",
    "lr": "learning_rate",
    "lr_scheduler_type": "lr_scheduler",
    "scheduler": "lr_scheduler",
    "num_warmup_steps": "warmup_steps",
    "lr_warmup_steps": "warmup_steps",
    "warmup": "warmup_ratio",
    "betas": "adam_beta1",
    "adam_eps": "adam_epsilon",
    "eps": "adam_epsilon",
    "gradient_clipping": "max_grad_norm",
    "grad_clip": "max_grad_norm",
    "batch_size": "global_batch_size",
    "train_batch_size": "global_batch_size",
    "epochs": "num_epochs",
    "num_train_epochs": "num_epochs",
    "steps": "max_steps",
    "num_steps": "max_steps",
    "sequence_len": "max_seq_len",
    "sequence_length": "max_seq_len",
    "cutoff_len": "max_seq_len",
    "max_length": "max_seq_len",
    "max_seq_length": "max_seq_len",
    "random_seed": "seed",
    "val_size": "eval.val_size",
    "val_set_size": "eval.val_size",
    "eval_steps": "eval.every",
    "eval_dataset": "eval.dataset",
    "save_steps": "save_every",
    "data": "dataset",
    "datasets": "dataset",
    "train_dataset": "dataset",
    "dataset_path": "dataset.path",
    "data_path": "dataset.path",
    "path": "dataset.path",
    "run_name": "name",
    "id": "name",
}

_PER_DEVICE = (
    "Give `global_batch_size`: the samples of one optimizer step, over all devices and "
    "accumulation steps. The planner cuts it into microbatches."
)
_PACKED = "Remove it: samples are always packed, and never see each other."

# Settings that have no one field of ours -> what to do instead.
ADVICE = {
    "per_device_train_batch_size": _PER_DEVICE,
    "micro_batch_size": _PER_DEVICE,
    "gradient_accumulation_steps": _PER_DEVICE,
    "packing": _PACKED,
    "sample_packing": _PACKED,
    "neat_packing": _PACKED,
    "<<": "Merge keys are not read. Put what jobs share under `defaults`.",
    "resume_from_checkpoint": "Remove it, and resume with `lorafusion train FILE --resume`.",
    "load_in_4bit": "Remove it: the base is not quantised.",
    "load_in_8bit": "Remove it: the base is not quantised.",
}


@dataclass(frozen=True)
class Refused:
    """A PEFT setting that is known and not carried out.

    Attributes:
        harmless: Values that ask for nothing; they are accepted and ignored.
        reason: Why it is refused.
        fix: What to do instead.
    """

    harmless: tuple[object, ...]
    reason: str
    fix: str


_ONE_FORM = "only the two factors of linear layers are trained"
REFUSED = {
    "modules_to_save": Refused(
        (None, ()),
        "whole modules cannot be trained: the base is shared by all jobs and never written to",
        "Remove it, and raise r or widen target_modules instead.",
    ),
    "use_dora": Refused(
        (False, None),
        "DoRA's magnitudes are not implemented",
        "Remove it, or write `use_dora: false`.",
    ),
    "bias": Refused(
        ("none", None),
        "biases belong to the base, which is shared by all jobs and never written to",
        "Remove it, or write `bias: none`.",
    ),
    "exclude_modules": Refused(
        (None, ()), "there is no exclusion list", "Name what to adapt in target_modules."
    ),
    "layers_to_transform": Refused(
        (None,), "layers are chosen by name", "Give a regex in target_modules."
    ),
    "target_parameters": Refused((None, ()), _ONE_FORM, "Name linear layers in target_modules."),
    "trainable_token_indices": Refused((None, ()), _ONE_FORM, "Remove it."),
    "init_lora_weights": Refused(
        (True, None), "A starts from PEFT's uniform distribution and B from zero", "Remove it."
    ),
}

# Embeddings and heads of the usual families: one row per token id, and tied to each other.
EMBEDDINGS_AND_HEADS = frozenset(
    {"embed_tokens", "lm_head", "wte", "wpe", "embed_in", "embed_out", "word_embeddings"}
)
