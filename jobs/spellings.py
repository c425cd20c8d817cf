"""Hints for names that are not ours, and PEFT's settings that are refused with a reason."""

from __future__ import annotations

from dataclasses import dataclass

# Names that could mean several things, and so are not taken as ours -> what may be meant.
HINTS = {
    "warmup": "warmup_ratio",
    "data": "dataset",
    "path": "dataset.path",
    "id": "name",
}

# Keys that have no one field of ours -> what to do instead.
ADVICE = {"<<": "Merge keys are not read. Put what jobs share under `defaults`."}


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
    "task_type": Refused(
        ("CAUSAL_LM", None), "the base is a causal LM", "Remove it, or write CAUSAL_LM."
    ),
    "inference_mode": Refused((False, None), "adapters are trained here", "Remove it."),
    "fan_in_fan_out": Refused(
        (False, True, None), "the base's own layers say which way their weights lie", "Remove it."
    ),
    "init_lora_weights": Refused(
        (True, None), "A starts from PEFT's uniform distribution and B from zero", "Remove it."
    ),
}

# Embeddings and heads of the usual families: one row per token id, and tied to each other.
EMBEDDINGS_AND_HEADS = frozenset(
    {"embed_tokens", "lm_head", "wte", "wpe", "embed_in", "embed_out", "word_embeddings"}
)
