"""The modules of a base by name, found once with torch and then kept.

Building SmolLM2's 135M modules without weights takes 20 ms, but importing torch and transformers
for it 4 s; a job file is checked many times over one base.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from lorafusion.kept import code_digest, keep, recall
from lorafusion.module_names import ModuleNames


def base_module_names(base_model: str) -> ModuleNames:
    """The names of the base's modules, which depend on its config alone.

    That they are kept also says that :func:`lorafusion.models.load.check_base` took the config.

    Args:
        base_model: A folder or a hub id. A hub id whose config is in the hub's local cache is
            taken from there, without asking the hub for a newer one.

    Raises:
        ModelError: As :func:`lorafusion.models.load.meta_model`. A refusal is not kept.
    """
    key = _key(base_model)
    found = recall(ModuleNames, key) if key else None
    if found is None:
        found = _look(base_model)
        key = _key(base_model)  # again: a config from the hub is in its cache now
        if key:
            keep(ModuleNames, key, found)
    return found


def _look(base_model: str) -> ModuleNames:
    from lorafusion.models.load import meta_model
    from lorafusion.module_names import module_names

    return module_names(meta_model(base_model))


def _key(base_model: str) -> tuple[bytes, ...] | None:
    config = _config_file(base_model)
    try:
        content = config.read_bytes() if config else None
    except OSError:
        return None
    if content is None:
        return None
    ours = code_digest("models", "module_names.py")
    return content, version("transformers").encode(), ours


def _config_file(base_model: str) -> Path | None:
    """Where the config of a folder, or of a hub id that was fetched before, lies."""
    folder = Path(base_model)
    if folder.is_dir():
        return folder / "config.json"
    if folder.is_absolute():
        return None
    from huggingface_hub.constants import HF_HUB_CACHE

    # The hub cache's documented layout; huggingface_hub's own function takes 0.2 s to import.
    repository = Path(HF_HUB_CACHE) / f"models--{base_model.replace('/', '--')}"
    try:
        commit = (repository / "refs" / "main").read_text().strip()
    except OSError:
        return None
    return repository / "snapshots" / commit / "config.json"
