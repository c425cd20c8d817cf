"""What the base answers, with or without one resident adapter: transformers' own generation."""

from __future__ import annotations

import functools
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from lorafusion.kernels.binding import bind_layout
from lorafusion.kernels.layout import AdapterLayout, ModuleAdapters, Segment
from lorafusion.models.load import Base


def generate(
    base: Base,
    token_ids: Sequence[int],
    *,
    max_new_tokens: int,
    slot: int = -1,
    modules: Mapping[str, ModuleAdapters] | None = None,
) -> list[int]:
    """The greedy continuation of a prompt.

    Args:
        base: A base whose linears may be wrapped by an :class:`AdapterBank`.
        token_ids: The prompt, at least one token.
        max_new_tokens: Most tokens of the answer.
        slot: The adapter to use; -1 = the base alone.
        modules: The bank's forms of that slot.

    Returns:
        The answer without the prompt, with the token that ended it if one did.
    """
    model: Any = base.model
    prompt = torch.tensor([list(token_ids)])
    ends = model.config.eos_token_id
    with _routed(base, slot, modules or {}), torch.no_grad():
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            use_cache=True,
            pad_token_id=ends[0] if isinstance(ends, list) else ends,
        )
    return output[0, len(token_ids) :].tolist()


@contextmanager
def _routed(base: Base, slot: int, modules: Mapping[str, ModuleAdapters]) -> Generator[None]:
    """Send all rows of every forward through ``slot``; attention is transformers' own here."""
    model: Any = base.model
    original = model.forward
    implementation = model.config._attn_implementation

    @functools.wraps(original)
    def forward(input_ids: torch.Tensor, **options: Any) -> Any:
        rows = Segment(slot, 0, 0, [0], [input_ids.numel()])
        with bind_layout(AdapterLayout.build([rows], modules, training=False)):
            return original(input_ids=input_ids, **options)

    model.set_attn_implementation(base.attention)
    model.forward = forward
    try:
        yield
    finally:
        del model.forward
        model.set_attn_implementation(implementation)
