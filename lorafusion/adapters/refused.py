"""What a PEFT folder may ask for that is not carried out, each with the reason and a way out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# What we write, plus fields of PEFT's that do not change what the stored A and B mean: they say
# how A and B were chosen or initialised, or only count when another field is set.
UNDERSTOOD_FIELDS = frozenset(
    {
        *("peft_type", "task_type", "base_model_name_or_path", "revision", "peft_version"),
        *("auto_mapping", "inference_mode", "r", "lora_alpha", "lora_dropout", "use_rslora"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("rank_pattern", "alpha_pattern", "fan_in_fan_out", "init_lora_weights", "eva_config"),
        *("megatron_core", "qalora_group_size", "ensure_weight_tying"),
    }
)
# Inits that leave the base as it is. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA shift its weights.
PLAIN_INITS = (True, False, "gaussian", "orthogonal", "eva")

_MERGE = (
    "Merge it with PEFT's merge_and_unload(), save the model, and take that as the base of a new "
    "adapter."
)
_REASONS = {
    "use_dora": "DoRA's magnitudes are not implemented.",
    "modules_to_save": "it replaces whole modules of the base, which all jobs share.",
    "bias": "it changes biases of the base, which all jobs share.",
    "lora_bias": "a bias beside B is not implemented.",
    "target_parameters": "LoRA on parameters that are no linear layers is not implemented.",
    "trainable_token_indices": "it changes rows of the embedding, which all jobs share.",
    "layer_replication": "it repeats layers of the base, which all jobs share.",
    "alora_invocation_tokens": "an adapter that waits for certain tokens is not implemented.",
    "use_qalora": "QALoRA's pooled inputs are not implemented.",
}
_UNKNOWN = "this setting is not known here, so it may change what the weights mean."
# Part of a tensor's key -> what it says.
_TENSORS = {
    "lora_embedding_": "LoRA on embeddings is not implemented.",
    "lora_magnitude_vector": _REASONS["use_dora"],
    ".lora_B.bias": _REASONS["lora_bias"],
    "modules_to_save": _REASONS["modules_to_save"],
    "base_layer": _REASONS["modules_to_save"],
}


def refused_fields(fields: dict[str, Any]) -> list[str]:
    """A sentence or two for each setting of an ``adapter_config.json`` that is refused."""
    found: list[str] = []
    if fields.get("peft_type") != "LORA":
        found.append(f"peft_type {fields.get('peft_type')!r} (allowed: 'LORA').")
    if fields.get("task_type") not in (None, "CAUSAL_LM"):
        found.append(f"task_type {fields['task_type']!r} (allowed: 'CAUSAL_LM').")
    if not isinstance(fields.get("target_modules"), str | list):
        found.append(f"target_modules {fields.get('target_modules')!r} (allowed: names, a regex).")
    if fields.get("init_lora_weights", True) not in PLAIN_INITS:
        found.append(
            f"init_lora_weights {fields['init_lora_weights']!r}: it shifts the base's weights. "
            "Save the adapter with PEFT's path_initial_model_for_weight_conversion, which makes it "
            "one of the base as it was."
        )
    # By default refused: a field of a later PEFT that we have never heard of may change the maths.
    found += [
        f"{name} {value!r}: {_REASONS.get(name, _UNKNOWN)} {_MERGE}"
        for name, value in fields.items()
        if name not in UNDERSTOOD_FIELDS and value and not (name == "bias" and value == "none")
    ]
    return found


def refused_tensors(keys: Sequence[str]) -> str:
    """Why tensors that are no A or B of a linear are refused, by the one that says most."""
    for part, reason in _TENSORS.items():
        for key in keys:
            if part in key:
                return f"tensor {key!r} is not supported: {reason} {_MERGE}"
    allowed = "base_model.model.<module>.lora_A.weight and .lora_B.weight"
    return f"tensor {keys[0]!r} is not supported; allowed are {allowed}."
