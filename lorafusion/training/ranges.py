"""Named ranges around what a stage is made of, for torch's profiler, as long as a block lasts.

Nothing of it is there at any other time: a stage that nobody profiles runs the code that it has.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.profiler import record_function

from lorafusion.kernels.layout import Projection
from lorafusion.kernels.lora_linear import op as lora_linear
from lorafusion.kernels.shared_input import op as shared_input
from lorafusion.models import attention
from lorafusion.models.stage import Stage

ATTENTION, LOSS, LAYER, LORA = "attention", "loss", "layer", "lora"
"""What the ranges are called; a layer's number, and an op of LoRA, come behind a blank, and
behind the op how many linears it runs, where they share their input."""

# Two of them have the base's own product inside.
OPS = ("down", "up", "grad_down", "grad_input", "grad_a")


@contextmanager
def named_ranges(stage: Stage, on_layer: Callable[[], None]) -> Generator[None]:
    """Put a range around each layer, the attention, each op of LoRA and the loss of ``stage``.

    Args:
        stage: This rank's.
        on_layer: Called before each forward of a layer.
    """
    with ExitStack() as stack:
        for index in stage.part.layers:
            stack.enter_context(_layer(stage.layers[index], f"{LAYER} {index}", on_layer))
        stack.enter_context(_attention())
        stack.enter_context(_replaced(vars(stage), "loss", _ranged(LOSS, stage.loss)))
        for module, ranged in ((lora_linear, _ranged), (shared_input, _ranged_with_count)):
            for name in OPS:
                run = ranged(f"{LORA} {name}", getattr(module, name))
                stack.enter_context(_replaced(module.__dict__, name, run))
        yield


@contextmanager
def _layer(layer: nn.Module, name: str, on_layer: Callable[[], None]) -> Generator[None]:
    inside: list[record_function] = []

    def enter(*_: object) -> None:
        on_layer()
        inside.append(record_function(name))
        inside[-1].__enter__()

    def leave(*_: object) -> None:
        inside.pop().__exit__(None, None, None)

    before = layer.register_forward_pre_hook(enter)
    after = layer.register_forward_hook(leave, always_call=True)  # also where the layer raises
    try:
        yield
    finally:
        before.remove()
        after.remove()


@contextmanager
def _attention() -> Generator[None]:
    """Transformers' layers look their attention up by its name at every call."""
    from transformers import AttentionInterface

    run = _ranged(ATTENTION, attention.packed_attention)
    AttentionInterface.register(attention.NAME, run)
    try:
        yield
    finally:
        attention.register()


@contextmanager
def _replaced(names: dict[str, Any], name: str, run: Callable[..., Any]) -> Generator[None]:
    missing = object()
    before = names.get(name, missing)
    names[name] = run
    try:
        yield
    finally:
        if before is missing:
            del names[name]
        else:
            names[name] = before


def _ranged(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    def inside(*arguments: Any, **named: Any) -> Any:
        with record_function(name):
            return run(*arguments, **named)

    return inside


def _ranged_with_count(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    def inside(*arguments: Any, **named: Any) -> Any:
        counts = [len(given) for given in arguments if _is_projections(given)]
        with record_function(f"{name} {counts[0]}" if counts else name):
            return run(*arguments, **named)

    return inside


def _is_projections(given: object) -> bool:
    return isinstance(given, tuple) and any(isinstance(one, Projection) for one in given)
