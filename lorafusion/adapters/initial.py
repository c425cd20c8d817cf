"""``adapter.init_from``: a job's adapter that starts from the weights of a PEFT folder.

What fixes the adapter's shape and function comes from the folder. Looked at without torch, so that
``lorafusion validate`` can say what does not fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lorafusion.adapters.folder import AdapterFolder, ModuleShape, adapter_folder, read_folder
from lorafusion.adapters.lora import LoraConfig
from lorafusion.adapters.targets import match_targets
from lorafusion.errors import AdapterError
from lorafusion.module_names import ModuleNames

if TYPE_CHECKING:
    import torch

    from lorafusion.adapters.peft_format import StoredAdapter

# The folder says these. Dropout is a choice of training: the job's if it gives one.
_FROM_FOLDER = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")


class Misfit(NamedTuple):
    """One setting of a job's adapter that cannot be carried out."""

    field: str
    found: str
    allowed: str
    fix: str

    def __str__(self) -> str:
        return f"adapter.{self.field}: found {self.found}; allowed: {self.allowed}. {self.fix}"


@dataclass(frozen=True)
class ResolvedAdapter:
    """A job's adapter on a certain base.

    Attributes:
        config: The job's settings, completed by the folder's.
        targets: Full names of the adapted linears, in the base's order.
        source: The folder of ``init_from``.
    """

    config: LoraConfig
    targets: tuple[str, ...]
    source: AdapterFolder | None

    def initial_tensors(self) -> dict[str, torch.Tensor] | None:
        """Parameter's name, such as ``<module>.lora_A``, -> value; None: as the method begins."""
        if self.source is None:
            return None
        from lorafusion.adapters.peft_format import load_weights

        return {
            f"{name}.{factor}": tensor
            for name, pair in load_weights(self.source).modules.items()
            for factor, tensor in zip(("lora_A", "lora_B"), pair, strict=True)
        }


def resolve_adapter(config: LoraConfig, names: ModuleNames) -> ResolvedAdapter:
    """What ``config`` means on a base, with the folder it starts from read and checked.

    Raises:
        AdapterError: The folder cannot be used, does not fit the base, or contradicts ``config``;
            or ``config`` names no module of the base.
    """
    source = read_folder(Path(config.init_from)) if config.init_from is not None else None
    found = list(misfits(config, source, names))
    if found:
        raise AdapterError(" ".join(map(str, found)))
    if source is None:
        return ResolvedAdapter(config, match_targets(names, config.target_modules), None)
    targets = tuple(name for name in names.linears if name in source.shapes)
    return ResolvedAdapter(completed(config, source), targets, source)


def completed(config: LoraConfig, source: AdapterFolder) -> LoraConfig:
    """``config`` with what the folder says."""
    kept: dict[str, object] = {"init_from": config.init_from}
    if "lora_dropout" in config.model_fields_set:
        kept["lora_dropout"] = config.lora_dropout
    return source.config.model_copy(update=kept)


def misfits(
    config: LoraConfig, source: AdapterFolder | None, names: ModuleNames | None
) -> Iterator[Misfit]:
    """What of a job's adapter cannot be carried out on its base.

    Args:
        config: The job's settings. Those that were not set are never wrong.
        source: The folder of its ``init_from``.
        names: Modules of the base; None if they are not known, and then they are not looked at.

    Raises:
        AdapterError: ``target_modules`` selects nothing, or something that is no linear.
    """
    if source is None:
        if names is not None:
            yield from _unused_keys(config, match_targets(names, config.target_modules))
        return
    for field in _FROM_FOLDER:
        ours, theirs = getattr(config, field), getattr(source.config, field)
        if field in config.model_fields_set and ours != theirs:
            yield _conflict(source, field, _shown(ours), _shown(theirs))
    if names is None:
        return
    if "target_modules" in config.model_fields_set:
        selected = match_targets(names, config.target_modules)
        if set(selected) != source.shapes.keys():
            ours = f"{_shown(config.target_modules)} ({len(selected)} modules)"
            theirs = f"{_shown(source.config.target_modules)} ({len(source.shapes)} modules)"
            yield _conflict(source, "target_modules", ours, theirs)
    wrong = misfit_of_base(source.shapes, names)
    if wrong is not None:
        yield Misfit(
            "init_from",
            f"{source.folder}, which {wrong}",
            "an adapter of this base",
            f"Choose another folder or base_model; this one names {source.base_model or 'none'}.",
        )


def misfit_of_base(shapes: Mapping[str, ModuleShape], names: ModuleNames) -> str | None:
    """Why an adapter does not fit a base: its first module that does not. None if it fits."""
    sizes = dict(zip(names.linears, names.shapes, strict=True))
    for name, shape in shapes.items():
        needed = (shape.rows, shape.columns)
        if sizes.get(name) == needed:
            continue
        has = "has no such linear"
        if name in sizes:
            has = f"has {list(sizes[name])} there"
        elif name in names.everything:
            has = "has no linear below the head there (embeddings and the head are not adapted)"
        return f"adapts {name} of shape {list(needed)}, and the base {has}"
    return None


def check_fit(adapter: StoredAdapter, names: ModuleNames, base_model: str) -> None:
    """Refuse an adapter that is of another base.

    Raises:
        AdapterError: A module of it is not in the base, or has another shape there.
    """
    wrong = misfit_of_base(adapter.shapes(), names)
    if wrong is not None:
        raise AdapterError(
            f"the adapter does not fit the base {base_model}: it {wrong}. Give the base that it "
            f"was trained on with --base-model; it names {adapter.base_model or 'none'}."
        )


def note_on_base(source: AdapterFolder, base_model: str) -> str | None:
    """A sentence if the folder names another base: a moved folder, or other weights."""
    if not source.base_model or not base_model or source.base_model == base_model:
        return None
    return (
        f"init_from {source.folder} was trained on {source.base_model}, and this run's base is "
        f"{base_model}. Its shapes fit; whether the weights are the same is not known."
    )


def overwritten_by(init_from: str, outputs: Iterable[Path]) -> Path | None:
    """The folder among ``outputs`` that holds ``init_from``, and would be written over."""
    source = adapter_folder(Path(init_from)).resolve()
    places = {source, *source.parents}
    return next((folder for folder in outputs if folder.resolve() in places), None)


def _conflict(source: AdapterFolder, field: str, ours: str, theirs: str) -> Misfit:
    return Misfit(
        field,
        f"{ours}, when init_from {source.folder} has {theirs}",
        "what the folder has: an adapter keeps its shape and scale",
        f"Remove {field}, or remove init_from to start afresh.",
    )


def _unused_keys(config: LoraConfig, targets: tuple[str, ...]) -> Iterator[Misfit]:
    ends = ", ".join(dict.fromkeys(name.rsplit(".", 1)[-1] for name in targets))
    for field, key in config.unused_keys(targets):
        yield Misfit(
            field,
            f"{key!r}, which fits no adapted module",
            f"ends of their names after a dot, such as {ends}, or a regex for such an end",
            "Mend the key, or remove it.",
        )


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        entries: Mapping[str, object] = value
        return "{" + ", ".join(f"{key}: {_shown(entry)}" for key, entry in entries.items()) + "}"
    if isinstance(value, tuple):
        names: tuple[object, ...] = value
        shown = [str(name) for name in names]
        return "[" + ", ".join([*shown[:8], *(["..."] if len(shown) > 8 else [])]) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
