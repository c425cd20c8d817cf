"""Text from the base, with or without one resident adapter: transformers' own generation."""

from __future__ import annotations

import functools
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from lorafusion.data.tokenizer import Tokenizer
from lorafusion.kernels.binding import bind_layout
from lorafusion.kernels.layout import AdapterLayout, ModuleAdapters, Segment
from lorafusion.models import attention
from lorafusion.models.load import Base


def generate(
    base: Base,
    tokenizer: Tokenizer,
    token_ids: list[int],
    *,
    slot: int = -1,
    modules: Mapping[str, ModuleAdapters] | None = None,
    max_new_tokens: int = 64,
) -> str:
    """The greedy continuation of a prompt.

    Args:
        base: A base whose linears may be wrapped by an :class:`AdapterBank`.
        tokenizer: Decodes the answer.
        token_ids: The prompt.
        slot: The adapter to use; -1 = the base alone.
        modules: The bank's forms of that slot.
        max_new_tokens: Most tokens of the answer.

    Returns:
        The answer without the prompt and without special tokens.
    """
    prompt = torch.tensor([token_ids])
    with _routed(base, slot, modules or {}), torch.no_grad():
        output = base.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            use_cache=True,
            pad_token_id=base.model.config.eos_token_id,
        )
    return str(tokenizer.decode(output[0, len(token_ids) :].tolist(), skip_special_tokens=True))


@contextmanager
def _routed(base: Base, slot: int, modules: Mapping[str, ModuleAdapters]) -> Generator[None]:
    """Send all rows of every forward through ``slot``; attention is transformers' own here."""
    model = base.model
    original = model.forward
    implementation = model.config._attn_implementation

    @functools.wraps(original)
    def forward(input_ids: torch.Tensor, **options: Any) -> Any:
        rows = Segment(slot, 0, 0, [0], [input_ids.numel()])
        with bind_layout(AdapterLayout.build([rows], modules, training=False)):
            return original(input_ids=input_ids, **options)

    model.set_attn_implementation("sdpa" if implementation == attention.NAME else implementation)
    model.forward = forward
    try:
        yield
    finally:
        del model.forward
        model.set_attn_implementation(implementation)
