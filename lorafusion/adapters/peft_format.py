"""Adapter folders in PEFT's format, with their weights: PEFT and vLLM load ours, we load PEFT's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.numpy import save
from safetensors.torch import load
from torch import Tensor

from lorafusion.adapters.folder import (
    CARD_FILE,
    CONFIG_FILE,
    FACTORS,
    KEY_PREFIX,
    WEIGHTS_FILE,
    AdapterFolder,
    ModuleShape,
    read_folder,
)
from lorafusion.adapters.lora import LoraConfig, Value, first_match
from lorafusion.errors import AdapterError, OutputError
from lorafusion.files import replace_folder_atomic

AdapterModules = Mapping[str, tuple[Tensor, Tensor]]
"""Full module name in the base -> (A [r, in], B [out, r])."""


class StoredAdapter(NamedTuple):
    """What an adapter folder holds."""

    config: LoraConfig
    base_model: str
    """Hub id or folder of the base; of a folder that names none, empty."""
    modules: AdapterModules
    """This, not ``config.target_modules``, says what is adapted."""
    fan_in_fan_out: bool = False
    """Whether the adapted modules store their weights as [in, out], as GPT-2's ``Conv1D`` does."""

    def shapes(self) -> dict[str, ModuleShape]:
        """What each adapted module has."""
        return {
            name: ModuleShape(a.shape[0], a.shape[1], b.shape[0])
            for name, (a, b) in self.modules.items()
        }


def save_adapter(
    folder: Path, adapter: StoredAdapter, *, linears: Sequence[str] | None, card: str
) -> None:
    """Write an adapter as a PEFT folder; ``folder`` is replaced whole or left as it was.

    Args:
        folder: Must not exist, be empty, or hold an older adapter and nothing else.
        adapter: Its tensors are written as float32.
        linears: Names of all linears of the base, adapted or not, its output head among them.
            None: ``config.target_modules`` says already which are adapted.
        card: Text of the README.

    Raises:
        AdapterError: A tensor is not finite, or not of its module's rank.
        OutputError: The folder holds other things, or cannot be written.
    """
    _check_tensors(str(folder), adapter)
    tensors = {
        f"{KEY_PREFIX}{name}{ending}": _plain(pair[index])
        for name, pair in adapter.modules.items()
        for ending, index in FACTORS.items()
    }
    fields = _config_fields(adapter, linears)
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


def load_adapter(path: Path) -> StoredAdapter:
    """Read an adapter of ours or of PEFT's, in float32 (float64 stays float64).

    Args:
        path: Its folder, or a job's folder with the adapter in it.

    Raises:
        AdapterError: As :func:`lorafusion.adapters.folder.read_folder`.
    """
    return load_weights(read_folder(path))


def load_weights(found: AdapterFolder) -> StoredAdapter:
    """:func:`load_adapter` of a folder that was looked at already."""
    stored = load(found.data)
    modules = {
        name: (_wide(stored, name, ".lora_A.weight"), _wide(stored, name, ".lora_B.weight"))
        for name in found.shapes
    }
    return StoredAdapter(found.config, found.base_model, modules, found.fan_in_fan_out)


def _wide(stored: Mapping[str, Tensor], module: str, ending: str) -> Tensor:
    tensor = stored[f"{KEY_PREFIX}{module}{ending}"]
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _plain(tensor: Tensor) -> Any:
    # By numpy the same bytes are written as by torch, in a third of the time.
    return tensor.detach().to(device="cpu", dtype=torch.float32).contiguous().numpy()


def _last_name(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _config_fields(adapter: StoredAdapter, linears: Sequence[str] | None) -> dict[str, Any]:
    config = adapter.config
    targets = config.target_modules
    if linears is not None:
        targets = tuple(minimal_targets(list(adapter.modules), linears))
    # Left out where they are empty: what vLLM does not know should stand there only when needed.
    ranks = _order_free(config.rank_pattern, adapter.modules)
    alphas = _order_free(config.alpha_pattern, adapter.modules)
    patterns = {
        "rank_pattern": ranks,
        "alpha_pattern": {key: _whole(alpha) for key, alpha in alphas.items()},
    }
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base_model,
        "inference_mode": True,
        "r": config.r,
        "lora_alpha": _whole(config.lora_alpha),
        "lora_dropout": config.lora_dropout,
        "use_rslora": config.use_rslora,
        **{name: pattern for name, pattern in patterns.items() if pattern},
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "bias": "none",
        "fan_in_fan_out": adapter.fan_in_fan_out,
        "use_dora": False,
        "modules_to_save": None,
    }


def _order_free(pattern: Mapping[str, Value], modules: Iterable[str]) -> dict[str, Value]:
    """The pattern, in which no module depends on which of two keys comes first.

    PEFT sorts the keys when it saves, so a folder that it loads and saves again would change.
    """
    in_order = dict(sorted(pattern.items()))
    found = {name: first_match(pattern, name, None) for name in modules}
    if all(first_match(in_order, name, None) == value for name, value in found.items()):
        return dict(pattern)
    return {re.escape(name): value for name, value in found.items() if value is not None}


def _whole(alpha: float) -> float:
    # PEFT and vLLM declare alphas as integers: 16.0 is written as 16.
    return int(alpha) if float(alpha).is_integer() else alpha


def _check_tensors(where: str, adapter: StoredAdapter) -> None:
    if not adapter.modules:
        raise AdapterError(f"{where}: the adapter has no module. At least one is needed.")
    for name, (a, b) in adapter.modules.items():
        rank = adapter.config.rank_of(name)
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
