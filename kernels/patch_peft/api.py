"""``patch_peft`` and its company. Torch and peft are imported when they are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lorafusion.errors import KernelError
from lorafusion.kernels.patch_peft.report import Fallback, Part, PatchReport

if TYPE_CHECKING:
    from torch import nn

    from lorafusion.kernels.patch_peft.rows import BatchRows


def patch_peft(model: nn.Module) -> PatchReport:
    """Run the LoRA layers of a PEFT model on :func:`lorafusion.kernels.lora_linear`.

    Parameters, their names, the optimizer's view of them, saving, merging and switching stay
    PEFT's: a layer's class changes, and nothing else of it. What our op cannot do falls back to
    PEFT's own forward, call by call, and the report says what and why. Adapters that PEFT adds to
    the model later are included. Patching twice changes nothing.

    Args:
        model: What ``get_peft_model`` gave, or any module that has LoRA layers of PEFT inside.

    Returns:
        What runs on our op, and what falls back; ``print`` it.

    Raises:
        KernelError: The model has no adapter layer of PEFT.
    """
    from lorafusion.kernels.patch_peft.layer import fuse_layers

    _require_adapters(model)
    fuse_layers(model)
    return patch_report(model)


def unpatch_peft(model: nn.Module) -> None:
    """Undo :func:`patch_peft`; a model that is not patched stays as it is."""
    from lorafusion.kernels.patch_peft.layer import restore_layers

    restore_layers(model)


@contextmanager
def patched(model: nn.Module) -> Generator[PatchReport]:
    """:func:`patch_peft` for a block. What was patched before stays so after it."""
    from lorafusion.kernels.patch_peft.layer import restore_layers, unfused_modules

    _require_adapters(model)
    before = unfused_modules(model)
    try:
        yield patch_peft(model)
    finally:
        if before:
            restore_layers(model)


def patch_report(model: nn.Module) -> PatchReport:
    """What would run on our op now, and which calls have fallen back since it was patched.

    Raises:
        KernelError: The model has no adapter layer of PEFT.
    """
    from lorafusion.kernels.patch_peft.layer import FusedLinear
    from lorafusion.kernels.patch_peft.reasons import adapter_fallback, layer_fallback

    parts: list[Part] = []
    seen: Counter[Fallback] = Counter()
    for name, layer in _require_adapters(model).items():
        plain = isinstance(layer, FusedLinear)
        why = layer_fallback(layer) if plain else Fallback.LAYER
        for adapter in _adapters_of(layer):
            own = why or adapter_fallback(layer, adapter)
            parts.append(Part(name, adapter, own))
        if plain:
            seen.update(layer.fallen_back or {})
    return PatchReport(tuple(parts), dict(seen))


@contextmanager
def adapter_rows(
    model: nn.Module, batch_adapters: Sequence[str | None], *, frozen: Collection[str] = ()
) -> Generator[None]:
    """Route each row of a batch through an adapter of its own, in training too.

    In the block, row i of dimension 0 of every batch goes through ``batch_adapters[i]``, and the
    gradients reach the A and B of each. In any order; rows of one adapter that lie side by side are
    computed together. The rows go with transformers' gradient checkpointing into the backward.

    Args:
        model: A patched model.
        batch_adapters: Names of adapters; None (or PEFT's ``"__base__"``) for the base alone.
        frozen: Adapters that may be frozen while the model trains.

    Raises:
        KernelError: The model is not patched, an adapter is unknown, merged or frozen, a layer
            cannot be routed, or the model is in such a block already. In a forward: the batch has
            another number of rows.
    """
    from lorafusion.kernels.patch_peft.rows import bind_rows, carried_to_recomputation, marked

    layers = _require_adapters(model)
    rows = _checked_rows(model, layers, batch_adapters, frozen)
    with bind_rows(rows), carried_to_recomputation(model, rows), marked(layers.values()):
        yield


def _checked_rows(
    model: nn.Module,
    layers: Mapping[str, Any],
    batch_adapters: Sequence[str | None],
    frozen: Collection[str],
) -> BatchRows:
    import torch

    from lorafusion.kernels.patch_peft.layer import FusedLinear
    from lorafusion.kernels.patch_peft.rows import BASE, BatchRows, rows_of

    if isinstance(batch_adapters, str):
        _refuse(f"batch_adapters is {batch_adapters!r}; allowed: a list, a name for each row")
    names = tuple(BASE if name is None else name for name in batch_adapters)
    for name, layer in layers.items():
        if not isinstance(layer, FusedLinear):
            _refuse(
                f"{name} ({type(layer).__name__}) cannot be routed by row; allowed: layers that "
                "are PEFT's plain LoRA Linear, patched by patch_peft(model)"
            )
        if "forward" in vars(layer):
            _refuse(f"something has put a forward of its own on {name}, which rows do not reach")
        if layer.merged:
            _refuse(f"adapters are merged in {name}; call model.unmerge_adapter() first")
        if rows_of(layer) is not None:
            _refuse("the model is in an adapter_rows block already; leave that one first")
    _refuse_own_copies(model)
    known = {name for layer in layers.values() for name in _adapters_of(layer)}
    used = set(names) - {BASE}
    unknown = sorted(str(name) for name in {*used, *frozen} - known)
    if unknown:
        _refuse(f"no adapter {', '.join(unknown)}; there are: {', '.join(sorted(known))}")
    if model.training and torch.is_grad_enabled():
        still = sorted(used - set(frozen) - _trained(layers.values()))
        if still:
            _refuse(
                f"the adapter {', '.join(still)} is frozen, so its rows would train nothing (PEFT "
                f"trains the active adapter alone); call model.set_requires_grad({sorted(used)}) "
                "before the optimizer is made, or name it in `frozen`"
            )
    return BatchRows(names, frozenset(id(layer) for layer in layers.values()))


def _require_adapters(model: nn.Module) -> dict[str, Any]:
    """Full name -> layer, of all layers of PEFT's tuners."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = {name: m for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    if not found:
        raise KernelError(
            f"patch_peft: {type(model).__name__} has no adapter layer of PEFT; call "
            "get_peft_model(model, LoraConfig(...)) first."
        )
    return found


def _refuse_own_copies(model: nn.Module) -> None:
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, module in model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            _refuse(
                f"each adapter has a copy of {name} (modules_to_save or trainable tokens), which "
                "rows do not choose; allowed: adapters of LoRA layers alone"
            )


def _adapters_of(layer: Any) -> list[str]:
    names = [name for part in layer.adapter_layer_names for name in getattr(layer, part, ())]
    return list(dict.fromkeys(names))


def _trained(layers: Collection[Any]) -> set[str]:
    return {
        name
        for layer in layers
        for factors in (layer.lora_A, layer.lora_B)
        for name, factor in factors.items()
        if factor.weight.requires_grad
    }


def _refuse(what: str) -> None:
    raise KernelError(f"adapter_rows: {what}.")
