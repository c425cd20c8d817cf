"""The modules of a base by name, as they are before any of them is wrapped or left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import nn


class ModuleNames(NamedTuple):
    """Full names in the model's order, taken before any linear is wrapped."""

    linears: tuple[str, ...]
    """The linears that may be adapted: ``nn.Linear`` and ``Conv1D``, all but the head."""
    everything: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    """[out, in] of each of ``linears``."""
    head: str = ""
    """The output head, if there is one."""
    stacked: tuple[str, ...] = ()
    """Parameters that hold the matrices of all experts of a layer in one tensor."""


def module_names(model: nn.Module) -> ModuleNames:
    """The names of an unwrapped model."""
    from torch import nn
    from transformers import PreTrainedModel
    from transformers.pytorch_utils import Conv1D

    whole: Any = model
    head = whole.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    modules: dict[str, nn.Module] = dict(whole.named_modules())
    linears = [n for n, m in modules.items() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    return ModuleNames(
        linears=tuple(linears),
        everything=tuple(modules),
        shapes=tuple(_out_in(modules[name]) for name in linears),
        head=next((name for name, module in modules.items() if module is head), ""),
        stacked=tuple(name for name, tensor in whole.named_parameters() if tensor.ndim == 3),
    )


def _out_in(linear: Any) -> tuple[int, int]:
    from torch import nn

    rows, columns = linear.weight.shape
    return (rows, columns) if isinstance(linear, nn.Linear) else (columns, rows)
