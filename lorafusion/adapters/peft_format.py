"""Adapter folders in PEFT's format: PEFT and vLLM load ours, and we load PEFT's.

A folder holds ``adapter_config.json``, ``adapter_model.safetensors`` (keys
``base_model.model.<module>.lora_A.weight`` [r, in] and ``.lora_B.weight`` [out, r]) and a README.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lorafusion.adapters.lora import LoraConfig
from lorafusion.errors import AdapterError, OutputError
from lorafusion.files import replace_folder_atomic

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
CARD_FILE = "README.md"
KEY_PREFIX = "base_model.model."
FACTORS = {".lora_A.weight": 0, ".lora_B.weight": 1}

# What we write, plus fields of PEFT's that do not change what the stored A and B mean: they say
# how A and B were chosen or initialised, or only count when another field is set.
UNDERSTOOD_FIELDS = frozenset(
    {
        *("peft_type", "task_type", "base_model_name_or_path", "revision", "peft_version"),
        *("auto_mapping", "inference_mode", "r", "lora_alpha", "lora_dropout", "use_rslora"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("fan_in_fan_out", "init_lora_weights", "eva_config", "megatron_core"),
        *("qalora_group_size", "ensure_weight_tying"),
    }
)
# Inits that leave the base as it is. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA shift its weights.
PLAIN_INITS = (True, False, "gaussian", "orthogonal", "eva")

AdapterModules = Mapping[str, tuple[Tensor, Tensor]]
"""Full module name in the base -> (A [r, in], B [out, r])."""


class LoadedAdapter(NamedTuple):
    """What :func:`load_adapter` found."""

    config: LoraConfig
    base_model: str
    modules: dict[str, tuple[Tensor, Tensor]]
    """Full module name in the base -> (A [r, in], B [out, r]): this, not ``target_modules``, says
    what is adapted."""


def save_adapter(
    folder: Path,
    *,
    config: LoraConfig,
    base_model: str,
    modules: AdapterModules,
    linears: Sequence[str],
    card: str,
) -> None:
    """Write an adapter as a PEFT folder; ``folder`` is replaced whole or left as it was.

    Args:
        folder: Must not exist, be empty, or hold an older adapter and nothing else.
        config: The job's settings.
        base_model: Hub id or folder of the base.
        modules: Full module name in the base -> (A [r, in], B [out, r]); written as float32.
        linears: Names of all linears of the base, adapted or not, its output head among them.
        card: Text of the README.

    Raises:
        AdapterError: A tensor is not finite or not of rank ``config.r``.
        OutputError: The folder holds other things, or cannot be written.
    """
    _check_tensors(str(folder), config.r, modules)
    tensors = {
        f"{KEY_PREFIX}{name}{ending}": _plain_copy(pair[index])
        for name, pair in modules.items()
        for ending, index in FACTORS.items()
    }
    fields = _config_fields(config, base_model, minimal_targets(list(modules), linears))
    try:
        _check_replaceable(folder)
        with replace_folder_atomic(folder) as temporary:
            (temporary / CONFIG_FILE).write_text(json.dumps(fields, indent=2) + "\n", "utf-8")
            (temporary / WEIGHTS_FILE).write_bytes(save(tensors, {"format": "pt"}))
            (temporary / CARD_FILE).write_text(card, "utf-8")
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"adapter folder {folder} cannot be written: {error}. "
            "Free space there, or choose another output folder."
        ) from error


def minimal_targets(adapted: Sequence[str], linears: Sequence[str]) -> list[str]:
    """The shortest list of names that selects exactly ``adapted`` among ``linears`` in PEFT.

    PEFT takes a module when its full name, or its end after a dot, is in the list. A last name
    such as ``q_proj`` stands in the list when all linears of that name are adapted; otherwise the
    full names of those that are.
    """
    chosen = set(adapted)
    left_out = {_last_name(name) for name in linears if name not in chosen}
    targets = [name if _last_name(name) in left_out else _last_name(name) for name in adapted]
    return list(dict.fromkeys(targets))


def load_adapter(folder: Path) -> LoadedAdapter:
    """Read an adapter folder of ours or of PEFT's, in float32 (float64 stays float64).

    Raises:
        AdapterError: A file is missing or damaged, or the adapter needs something that we do not
            support; the message names each such field.
    """
    fields = _read_config(folder)
    _refuse_unsupported(folder, fields)
    modules = _pair_factors(folder, _read_weights(folder))
    config = _lora_config(folder, fields, modules)
    _check_tensors(str(folder), config.r, modules)
    return LoadedAdapter(config, str(fields.get("base_model_name_or_path") or ""), modules)


def _plain_copy(tensor: Tensor) -> Tensor:
    # A copy even of what is float32 on the CPU: safetensors refuses tensors that share memory.
    return tensor.detach().to(device="cpu", dtype=torch.float32, copy=True).contiguous()


def _last_name(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _config_fields(config: LoraConfig, base_model: str, targets: list[str]) -> dict[str, Any]:
    # PEFT and vLLM declare lora_alpha as an integer: 16.0 is written as 16.
    whole = float(config.lora_alpha).is_integer()
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": config.r,
        "lora_alpha": int(config.lora_alpha) if whole else config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "use_rslora": config.use_rslora,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_dora": False,
        "modules_to_save": None,
    }


def _check_tensors(where: str, rank: int, modules: AdapterModules) -> None:
    if not modules:
        raise AdapterError(f"{where}: the adapter has no module. At least one is needed.")
    for name, (a, b) in modules.items():
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
            raise AdapterError(
                f"{where}: {name}: A is {list(a.shape)} and B {list(b.shape)}; "
                f"rank {rank} needs A [{rank}, in] and B [out, {rank}]."
            )
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise AdapterError(
                f"{where}: {name}: a weight is NaN or infinite. Such an adapter is of no use: "
                "train again with a lower learning rate."
            )


def _check_replaceable(folder: Path) -> None:
    if folder.is_dir():
        others = sorted({p.name for p in folder.iterdir()} - {CONFIG_FILE, WEIGHTS_FILE, CARD_FILE})
        if others:
            raise OutputError(
                f"adapter folder {folder} also holds {', '.join(others)}, which would be lost. "
                "Move that elsewhere, or choose another output folder."
            )
    elif folder.exists():
        raise OutputError(f"adapter folder {folder} is a file. Remove it or choose another path.")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        fields: object = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AdapterError(
            f"{folder}: no {CONFIG_FILE} there. Give the folder of a LoRA adapter."
        ) from error
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(fields, dict):
        raise AdapterError(f"{path} holds no JSON object.")
    return cast("dict[str, Any]", fields)


def _refuse_unsupported(folder: Path, fields: dict[str, Any]) -> None:
    problems: list[str] = []
    if fields.get("peft_type") != "LORA":
        problems.append(f"peft_type {fields.get('peft_type')!r} (allowed: 'LORA')")
    if fields.get("task_type") not in (None, "CAUSAL_LM"):
        problems.append(f"task_type {fields['task_type']!r} (allowed: 'CAUSAL_LM')")
    if not isinstance(fields.get("target_modules"), str | list):
        problems.append(f"target_modules {fields.get('target_modules')!r} (allowed: names, regex)")
    if fields.get("init_lora_weights", True) not in PLAIN_INITS:
        problems.append(
            f"init_lora_weights {fields['init_lora_weights']!r} (it shifts the base; "
            "convert it with PEFT's path_initial_model_for_weight_conversion)"
        )
    # By default refused: a field of a later PEFT that we have never heard of may change the maths.
    problems += [
        f"{name} {value!r}"
        for name, value in fields.items()
        if name not in UNDERSTOOD_FIELDS and value and not (name == "bias" and value == "none")
    ]
    if problems:
        raise AdapterError(f"{folder / CONFIG_FILE}: not supported: {'; '.join(problems)}.")


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickled = [p.name for p in sorted(folder.glob("adapter_model.*")) if p != path]
        hint = (
            f"{pickled[0]} is a pickle, which can run code and is never read: save the adapter "
            "again with PEFT's safe_serialization=True."
            if pickled
            else "Give the folder of a finished adapter."
        )
        raise AdapterError(f"{folder}: no {WEIGHTS_FILE} there. {hint}")
    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path} is damaged: {error}. Copy or export it again.") from error


def _pair_factors(folder: Path, tensors: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    found: dict[str, dict[int, Tensor]] = {}
    for key, tensor in sorted(tensors.items()):  # safetensors returns them in any order
        ending = next((e for e in FACTORS if key.endswith(e)), None)
        if ending is None or not key.startswith(KEY_PREFIX):
            raise AdapterError(
                f"{folder / WEIGHTS_FILE}: tensor {key!r} is not supported; allowed are "
                f"{KEY_PREFIX}<module>.lora_A.weight and .lora_B.weight."
            )
        wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        found.setdefault(key[len(KEY_PREFIX) : -len(ending)], {})[FACTORS[ending]] = wide
    single = [name for name, pair in found.items() if len(pair) < 2]
    if single:
        raise AdapterError(f"{folder / WEIGHTS_FILE}: {single[0]} has one of A and B only.")
    return {name: (pair[0], pair[1]) for name, pair in found.items()}


def _lora_config(
    folder: Path, fields: dict[str, Any], modules: dict[str, tuple[Tensor, Tensor]]
) -> LoraConfig:
    targets = fields["target_modules"]
    if fields.get("exclude_modules") or fields.get("layers_to_transform") is not None:
        targets = tuple(modules)  # we have no such fields: name the outcome instead
    names = ("r", "lora_alpha", "lora_dropout", "use_rslora")
    given = {name: fields[name] for name in names if name in fields}
    try:
        return LoraConfig(**given, target_modules=targets)
    except ValidationError as error:
        wrong = "; ".join(f"{e['loc'][0]}: {e['msg']}" for e in error.errors())
        raise AdapterError(f"{folder / CONFIG_FILE}: {wrong}.") from error
