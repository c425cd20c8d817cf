"""An adapter folder in PEFT's format, looked at without torch: settings, shapes, what is refused.

A folder holds ``adapter_config.json`` and ``adapter_model.safetensors`` with keys
``base_model.model.<module>.lora_A.weight`` [r, in] and ``.lora_B.weight`` [out, r].
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

from pydantic import ValidationError

from lorafusion.adapters.lora import LoraConfig
from lorafusion.adapters.refused import refused_fields, refused_tensors
from lorafusion.errors import AdapterError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
CARD_FILE = "README.md"
KEY_PREFIX = "base_model.model."
FACTORS = {".lora_A.weight": 0, ".lora_B.weight": 1}
# Where a job's folder keeps its adapter.
IN_A_JOB = "adapter"
# NumPy knows no bfloat16: its bits are looked at.
_NUMPY = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2"}
_BF16_EXPONENT = 0x7F80


class ModuleShape(NamedTuple):
    """What an adapter has on one linear of the base."""

    rank: int
    columns: int
    """The linear's inputs."""
    rows: int
    """The linear's outputs."""


class StoredTensor(NamedTuple):
    """A tensor of a safetensors file."""

    dtype: str
    """As safetensors names it, such as F32 or BF16."""
    shape: tuple[int, ...]
    data: memoryview


@dataclass(frozen=True)
class AdapterFolder:
    """A folder whose adapter can be used.

    Attributes:
        folder: Where its files lie.
        config: Its settings. What is adapted say ``shapes``, not ``target_modules``.
        base_model: What it names as its base, or nothing.
        fan_in_fan_out: Whether it names its linears' weights as [in, out] (GPT-2's ``Conv1D``).
        shapes: By full name of the module in the base, in the alphabet's order.
        data: The content of the weights' file.
    """

    folder: Path
    config: LoraConfig
    base_model: str
    fan_in_fan_out: bool
    shapes: dict[str, ModuleShape]
    data: bytes = field(repr=False)

    def digest(self) -> str:
        """SHA-256 of the weights' file."""
        return hashlib.sha256(self.data).hexdigest()


def read_folder(path: Path) -> AdapterFolder:
    """Look at an adapter of ours or of PEFT's.

    Args:
        path: Its folder, or a job's folder with the adapter in it.

    Raises:
        AdapterError: A file is missing or damaged, a weight is not finite, or the adapter needs
            something that is not supported; the message names each such setting.
    """
    folder = adapter_folder(path)
    fields = read_fields(folder)
    refused = refused_fields(fields)
    if refused:
        raise AdapterError(f"{folder / CONFIG_FILE}: not supported: {' '.join(refused)}")
    data = read_data(folder)
    tensors = stored_tensors(folder, data)
    others = [key for key in tensors if _module_of(key) is None]
    if others:
        raise AdapterError(f"{folder / WEIGHTS_FILE}: {refused_tensors(others)}")
    pairs = _pairs(folder, tensors)
    config = _config(folder, fields, tuple(pairs))
    shapes = {name: _shape(folder, config, name, *pair) for name, pair in pairs.items()}
    _check_finite(folder, tensors)
    return AdapterFolder(
        folder,
        config,
        base_model=str(fields.get("base_model_name_or_path") or ""),
        fan_in_fan_out=bool(fields.get("fan_in_fan_out")),
        shapes=shapes,
        data=data,
    )


def adapter_folder(path: Path) -> Path:
    """``path``, or the adapter's folder in it if it is the folder of a job."""
    inner = path / IN_A_JOB
    is_job = not (path / CONFIG_FILE).exists() and (inner / CONFIG_FILE).exists()
    return inner if is_job else path


def read_fields(folder: Path) -> dict[str, Any]:
    """The folder's ``adapter_config.json``.

    Raises:
        AdapterError: It is missing, or no JSON object.
    """
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


def read_data(folder: Path) -> bytes:
    """The bytes of the folder's weights. A pickle is never read.

    Raises:
        AdapterError: There is no safetensors file, or it cannot be read.
    """
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
        return path.read_bytes()
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error}. Check its permissions.") from error


def stored_tensors(folder: Path, data: bytes) -> dict[str, StoredTensor]:
    """The tensors in ``data`` by key, in the alphabet's order.

    Raises:
        AdapterError: It is no safetensors file.
    """
    from safetensors import SafetensorError, deserialize

    try:
        found = cast("list[tuple[str, dict[str, Any]]]", deserialize(data))
    except SafetensorError as error:
        path = folder / WEIGHTS_FILE
        raise AdapterError(f"{path} is damaged: {error}. Copy or export it again.") from error
    return {
        key: StoredTensor(entry["dtype"], tuple(entry["shape"]), memoryview(entry["data"]))
        for key, entry in sorted(found, key=lambda item: item[0])
    }


def bad_tensor(tensors: dict[str, StoredTensor]) -> str | None:
    """Why a tensor is of no use: its key, and what is wrong with it. None if all are sound."""
    import numpy as np

    for key, tensor in tensors.items():
        if tensor.dtype not in _NUMPY:
            return f"{key} is of type {tensor.dtype}; allowed: {', '.join(_NUMPY)}"
        values = np.frombuffer(tensor.data, dtype=_NUMPY[tensor.dtype])
        finite = (
            (values & _BF16_EXPONENT) != _BF16_EXPONENT
            if tensor.dtype == "BF16"
            else np.isfinite(values)
        )
        if not finite.all():
            return f"{key}: a weight is NaN or infinite"
    return None


def _module_of(key: str) -> tuple[str, int] | None:
    """The module and the factor (0 for A, 1 for B) that a key names."""
    for ending, index in FACTORS.items():
        if key.startswith(KEY_PREFIX) and key.endswith(ending):
            return key[len(KEY_PREFIX) : -len(ending)], index
    return None


def _pairs(
    folder: Path, tensors: dict[str, StoredTensor]
) -> dict[str, tuple[StoredTensor, StoredTensor]]:
    found: dict[str, dict[int, StoredTensor]] = {}
    for key, tensor in tensors.items():
        place = _module_of(key)
        assert place is not None, "an unknown key was let through"
        found.setdefault(place[0], {})[place[1]] = tensor
    if not found:
        raise AdapterError(f"{folder}: the adapter has no module. At least one is needed.")
    single = [name for name, pair in found.items() if len(pair) < 2]
    if single:
        raise AdapterError(f"{folder / WEIGHTS_FILE}: {single[0]} has one of A and B only.")
    return {name: (pair[0], pair[1]) for name, pair in found.items()}


def _config(folder: Path, fields: dict[str, Any], modules: tuple[str, ...]) -> LoraConfig:
    targets = fields["target_modules"]
    if fields.get("exclude_modules") or fields.get("layers_to_transform") is not None:
        targets = modules  # we have no such fields: name the outcome instead
    names = ("r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern")
    given = {name: fields[name] for name in names if fields.get(name) is not None}
    try:
        return LoraConfig(**given, target_modules=targets)
    except ValidationError as error:
        wrong = "; ".join(f"{e['loc'][0]}: {e['msg']}" for e in error.errors())
        raise AdapterError(f"{folder / CONFIG_FILE}: {wrong}.") from error


def _shape(
    folder: Path, config: LoraConfig, name: str, a: StoredTensor, b: StoredTensor
) -> ModuleShape:
    rank = config.rank_of(name)
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != rank or b.shape[1] != rank:
        # PEFT cannot load such a folder either, though it may have written it.
        order = " PEFT sorts the keys of rank_pattern when it saves, and the first that fits counts"
        raise AdapterError(
            f"{folder}: {name}: A is {list(a.shape)} and B {list(b.shape)}; "
            f"rank {rank} needs A [{rank}, in] and B [out, {rank}]."
            + (f"{order}: name this module there in full." if len(config.rank_pattern) > 1 else "")
        )
    return ModuleShape(rank, a.shape[1], b.shape[0])


def _check_finite(folder: Path, tensors: dict[str, StoredTensor]) -> None:
    bad = bad_tensor(tensors)
    if bad is not None:
        raise AdapterError(
            f"{folder / WEIGHTS_FILE}: {bad}. Such an adapter is of no use: train again with a "
            "lower learning rate, or export it again."
        )
