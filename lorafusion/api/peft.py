"""A ``peft.LoraConfig`` as the fields of an adapter here."""

from __future__ import annotations

import sys
from typing import Any

_ALWAYS = ("r", "lora_alpha", "lora_dropout")  # their defaults are not all ours
# What says nothing of the adapter's values: found by the base, or of use after training only.
_IDLE = {
    "auto_mapping",
    "base_model_name_or_path",
    "fan_in_fan_out",
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
}


def is_peft_config(value: object) -> bool:
    """Whether it is one, where PEFT has been imported."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(value, peft.PeftConfig)


def peft_fields(config: Any) -> dict[str, Any]:
    """The settings that differ from PEFT's defaults; what we do not know is refused by its name.

    ``target_modules`` is always among them: PEFT has a default for each kind of model, which is
    not ``all-linear``, so None must be refused.
    """
    given, default = config.to_dict(), type(config)().to_dict()
    fields = {
        name: value
        for name, value in given.items()
        if name not in _IDLE and (name in _ALWAYS or value != default.get(name))
    }
    if str(getattr(config.task_type, "value", config.task_type)) in ("CAUSAL_LM", "None"):
        fields.pop("task_type", None)
    targets = config.target_modules
    fields["target_modules"] = sorted(targets) if isinstance(targets, set | list) else targets
    return {"type": str(config.peft_type.value).lower(), **fields}
