"""``lorafusion merge``: base + adapter as one full model, ``W' = W + s · B A``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from lorafusion.adapters.folder import adapter_folder
from lorafusion.adapters.initial import check_fit
from lorafusion.adapters.peft_format import StoredAdapter, load_adapter
from lorafusion.errors import AdapterError, OutputError
from lorafusion.files import replace_folder_atomic
from lorafusion.models.load import load_as_stored
from lorafusion.module_names import module_names

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
_MAX_SHARD = "5GB"
_CONFIG = "config.json"
_GENERATION_CONFIG = "generation_config.json"
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "tekken.json"),
    *("chat_template.jinja", "chat_template.json"),
)


@dataclass(frozen=True)
class MergeResult:
    """What was written.

    Attributes:
        folder: The full model.
        modules: Linears that were changed.
        dtype: Number format of the weights.
        unused: Tensors in the base's files that the model has no use for, and that are not in
            ``folder`` therefore.
    """

    folder: Path
    modules: int
    dtype: str
    unused: tuple[str, ...]


def merge(
    adapter: Path,
    output: Path,
    *,
    base_model: str | None,
    dtype: str | None,
    report: Callable[[str], None],
) -> MergeResult:
    """Write the model that base and adapter are together, as a Hugging Face folder.

    Takes the memory of one copy of the model, and of one linear's weight in float32.

    Args:
        adapter: The adapter's folder, ours or PEFT's, or a job's folder.
        output: A folder that does not exist or is empty.
        base_model: Folder or hub id of the base; None: the one that the adapter names.
        dtype: Of the weights, one of ``DTYPES``; None: the base's own.
        report: Told what is being done.

    Raises:
        AdapterError: The adapter cannot be used or is not of this base, or a merged weight does
            not fit into the number format.
        ModelError: The base cannot be loaded.
        OutputError: ``output`` holds something, or cannot be written.
    """
    loaded = load_adapter(adapter)
    name = base_model or loaded.base_model
    if not name:
        raise AdapterError(f"{adapter} does not name its base. Give it with --base-model.")
    _check_output(output, sources=(Path(name), adapter_folder(adapter)))
    report(f"loading {name}")
    model, unused = load_as_stored(name)
    check_fit(loaded, module_names(model), name)
    report(f"merging {len(loaded.modules)} linears")
    merge_into(model, loaded, None if dtype is None else DTYPES[dtype])
    report(f"writing {output}")
    _write(model, name, output)
    return MergeResult(output, len(loaded.modules), _name(model.dtype), tuple(unused))


def merge_into(model: Any, adapter: StoredAdapter, dtype: torch.dtype | None) -> None:
    """Add the adapter's products to the weights of ``model``, and turn all of it into ``dtype``.

    Each sum is computed in float32, or float64 where an operand is, and rounded once.

    Args:
        model: A causal LM of transformers.
        adapter: One that fits it.
        dtype: None: each weight stays in its own.

    Raises:
        AdapterError: A sum is beyond the range of the number format.
    """
    for name, (a, b) in adapter.modules.items():
        linear: Any = model.get_submodule(name)
        weight: torch.Tensor = linear.weight
        wide = torch.promote_types(torch.promote_types(weight.dtype, a.dtype), torch.float32)
        product = b.to(wide) @ a.to(wide)
        # Conv1D stores [in, out].
        product = product if isinstance(linear, nn.Linear) else product.T
        scale = adapter.config.scale_of(name)
        merged = torch.add(weight.detach().to(wide), product, alpha=scale)
        merged = merged.to(weight.dtype if dtype is None else dtype)
        if not bool(merged.isfinite().all()):
            raise AdapterError(
                f"{name}: a merged weight is not finite in {_name(merged.dtype)}. "
                "Give a --dtype of a wider range, such as bfloat16 or float32."
            )
        # A new tensor: the old one may be a view of the base's file.
        linear.weight = nn.Parameter(merged, requires_grad=False)
    if dtype is not None:
        model.to(dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_output(output: Path, *, sources: tuple[Path, ...]) -> None:
    if output.is_dir() and any(output.iterdir()):
        raise OutputError(
            f"output folder {output} is not empty. Choose another, or remove it first."
        )
    if output.exists() and not output.is_dir():
        raise OutputError(f"output folder {output} is a file. Choose another path.")
    inside = {source.resolve() for source in sources if source.is_dir()}
    if inside & {output.resolve(), *output.resolve().parents}:
        raise OutputError(
            f"output folder {output} lies in the base's or the adapter's folder, which stay as "
            "they are. Choose another."
        )


def _write(model: Any, base_model: str, output: Path) -> None:
    from transformers import GenerationConfig

    # The base's own file is copied: transformers refuses to save one that it warns of on loading.
    model.generation_config = GenerationConfig()
    try:
        with replace_folder_atomic(output) as folder:
            model.save_pretrained(folder, max_shard_size=_MAX_SHARD)
            for shard in folder.glob("*.safetensors"):
                # safetensors makes files that only their owner reads; others serve the model too.
                shard.chmod((folder / _CONFIG).stat().st_mode)
            (folder / _GENERATION_CONFIG).unlink(missing_ok=True)
            for name in (_GENERATION_CONFIG, *_TOKENIZER_FILES):
                source = _base_file(base_model, name)
                if source is not None:
                    shutil.copyfile(source, folder / name)
            _keep_config(base_model, folder / _CONFIG)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"{output} cannot be written: {error}. Free space there, or choose another folder."
        ) from error


def _keep_config(base_model: str, path: Path) -> None:
    """The base's own ``config.json`` with the new number format.

    transformers writes a config in its newest form, which older versions of it and other engines
    do not all read. Where the base was loaded as another class, that form is right.
    """
    source = _base_file(base_model, _CONFIG)
    if source is None:
        return
    saved: dict[str, Any] = json.loads(path.read_text("utf-8"))
    original: dict[str, Any] = json.loads(source.read_text("utf-8"))
    if original.get("architectures") != saved["architectures"]:
        return
    key = "dtype" if "dtype" in original else "torch_dtype"
    text = json.dumps({**original, key: saved["dtype"]}, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", "utf-8")


def _base_file(base_model: str, name: str) -> Path | None:
    """A file of the base, in its folder or the hub's cache; None if it has none of that name."""
    from transformers.utils import hub

    found: str | None = cast("Any", hub).cached_file(
        base_model,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found) if found else None
