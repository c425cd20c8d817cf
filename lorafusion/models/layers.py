"""Where a decoder of transformers has its layers, and the refusal of one that cannot be cut."""

from __future__ import annotations

from torch import nn

from lorafusion.errors import ModelError


def find_layers(decoder: nn.Module, count: int) -> str:
    """The name of the decoder's list of ``count`` layers.

    Raises:
        ModelError: There is not exactly one.
    """
    lists = [
        name
        for name, module in decoder.named_children()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if len(lists) != 1:
        raise unfit(decoder, f"has {len(lists)} lists of {count} layers instead of one")
    return lists[0]


def unfit(decoder: nn.Module, what: str) -> ModelError:
    """The refusal of a decoder that does ``what``."""
    return ModelError(
        f"{type(decoder).__name__} {what}, so its layers cannot be called one by one; "
        "allowed: decoders that pass one hidden state from layer to layer, such as those of "
        "docs/models.md. Choose another base."
    )


def uncuttable(decoder: nn.Module, what: str) -> ModelError:
    """The refusal of a decoder that does ``what``, but runs where it is whole."""
    return ModelError(
        f"{type(decoder).__name__} {what}, so it cannot be cut into stages; allowed: this base in "
        "one process, or a decoder that passes nothing but one hidden state from layer to layer, "
        "such as those of docs/models.md."
    )
