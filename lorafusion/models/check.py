"""Compares a stage with the model that it was cut from, when it is built.

What no rule of ours knows (a scale between the layers, another head, a neighbour that leaks into a
sample) shows here, and is refused instead of being trained wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch

from lorafusion.errors import ModelError
from lorafusion.kernels.cross_entropy import Head
from lorafusion.models.layers import find_layers
from lorafusion.models.load import Base
from lorafusion.models.refusals import longest_sample

# Relative error of logits. Wrong wiring shows as errors near 1. In float64 too, transformers' eager
# softmax is float32. SmolLM2's 30 layers in bfloat16 differ by .01 in most rows between two right
# attentions, but by .8 in one of 26: hence not the worst row.
_LAYERS = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1}
# Of the head alone, on equal hidden states.
_HEAD = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 0.02}
_LENGTHS = (13, 5, 8)
_WINDOW = 4

Packed = Callable[[list[torch.Tensor]], torch.Tensor]
Opened = Callable[[torch.Tensor], torch.Tensor]


@torch.no_grad()
def check_stage(
    base: Base, packed: Packed, opened: Opened, open_head: Callable[[], Head | None], *, name: str
) -> None:
    """Packed samples must give the logits that the model's own forward gives each alone.

    Sliding windows are made shorter than the samples for the length of the check, so that they
    bind, whatever they are in the base. A part of a base is compared with the model that has its
    layers alone; what it is given and gives is then a hidden state instead of tokens and logits.

    Args:
        base: Its model's attention is put back to its own meanwhile.
        packed: Samples -> their final hidden states [T, D], one after the other.
        opened: A hidden state that is given to the model -> what its first layer gets of it.
        open_head: Gives what makes logits of these; None where it is not here.
        name: Of the packed attention.

    Raises:
        ModelError: The logits differ.
    """
    samples = _samples(base)
    with _short_windows(base.model):
        base.model.set_attn_implementation(base.attention)
        states, expected = _alone(base, samples)
        base.model.set_attn_implementation(name)
        entering = samples if base.part.first else [opened(sample) for sample in samples]
        together = packed(entering)
        apart = torch.cat([packed([sample]) for sample in entering])
    found, head = apart, open_head()
    if head is not None and base.part.last:
        found = head.logits(apart)
        error = _error(head.logits(states), expected)
        if not error <= _HEAD[base.dtype]:
            raise _unfit(
                base, error, "makes other logits of its final hidden state than its config"
            )
    error = _error_of_most_rows(found, expected)
    if not error <= _LAYERS[base.dtype]:
        raise _unfit(base, error, "gives other logits when its layers are called one by one")
    error = _error(together, apart)
    if not error <= _LAYERS[base.dtype]:
        raise _unfit(base, error, "gives other results when samples are packed side by side")


def _samples(base: Base) -> list[torch.Tensor]:
    """Tokens [T] each; of a part without an embedding, hidden states [T, D]."""
    config: Any = base.model.config.get_text_config()
    limit = longest_sample(base.model.config) or max(_LENGTHS)
    lengths = [min(length, limit) for length in _LENGTHS]
    if base.part.first:
        rows = torch.arange(sum(lengths), device=base.model.device)
        # A prime step spreads the tokens over the vocabulary, whose first ones are often special.
        return list(((rows * 7919 + 3) % config.vocab_size).split(lengths))
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(sum(lengths), config.hidden_size, generator=generator)
    return list(states.to(base.model.device, base.dtype).split(lengths))


def _alone(base: Base, samples: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model's own head takes and what the model returns, each sample by itself."""
    model: Any = base.model
    entering = "input_ids" if base.part.first else "inputs_embeds"
    calls = [{entering: sample[None], "use_cache": False} for sample in samples]
    states: list[torch.Tensor] = []

    def note(_module: Any, _args: object, hidden: torch.Tensor) -> None:
        states.append(hidden[0])

    def note_first(_module: Any, args: tuple[torch.Tensor, ...]) -> None:
        states.append(args[0][0])

    if base.part.last:
        run, hook = model, model.get_output_embeddings().register_forward_pre_hook(note_first)
    else:
        run = model.get_decoder()
        layers = getattr(run, find_layers(run, base.part.total))
        hook = layers[base.part.layers[-1]].register_forward_hook(note)
    try:
        outputs = [run(**call) for call in calls]
    finally:
        hook.remove()
    found = torch.cat(states)
    return found, torch.cat([o.logits[0] for o in outputs]) if base.part.last else found


@contextmanager
def _short_windows(model: Any) -> Generator[None]:
    """Set every sliding window, in configs and layers, to a few rows."""
    owners: dict[int, Any] = {}
    for owner in (model, *model.modules()):
        for holder in (owner, getattr(owner, "config", None)):
            if isinstance(getattr(holder, "sliding_window", None), int):
                owners[id(holder)] = holder
    before = [(owner, owner.sliding_window) for owner in owners.values()]
    try:
        for owner, window in before:
            owner.sliding_window = min(window, _WINDOW)
        yield
    finally:
        for owner, window in before:
            owner.sliding_window = window


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _error_of_most_rows(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The error that three quarters of the rows stay within: a window touches half of them."""
    rows = (found - expected).norm(dim=1) / expected.norm(dim=1)
    return float(rows.double().quantile(0.75))


def _unfit(base: Base, error: float, what: str) -> ModelError:
    return ModelError(
        f"base_model {base.name!r} ({type(base.model).__name__}) {what} "
        f"(relative error {error:.2g}): it does something that stages do not know. Choose one of "
        "docs/models.md."
    )
