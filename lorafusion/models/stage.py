"""The layers that one pipeline rank holds, called one by one on a packed microbatch.

A stage never calls the model's own forward: that would build masks over the whole microbatch, and a
slice of ``model.layers`` would count layers from zero again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lorafusion.errors import ModelError
from lorafusion.kernels.binding import bind_layout
from lorafusion.kernels.layout import AdapterLayout, Segment
from lorafusion.models import attention
from lorafusion.models.load import Base

# Relative error of the logits against the model's own forward. Wrong wiring (a missing embedding
# scale, say) shows as errors near 1.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.2}


class Stage(nn.Module):
    """Embedding, decoder layers, final norm and head of a causal LM.

    Built on what every Llama-like model of transformers has: ``get_decoder()`` with ``layers``,
    ``norm`` and ``rotary_emb``.
    """

    def __init__(self, base: Base) -> None:
        """Take the base's modules; they stay the base's own.

        Raises:
            ModelError: The base has other parts, or gives other logits through the stage.
        """
        super().__init__()
        from transformers import AttentionInterface

        AttentionInterface.register(attention.NAME, attention.packed_attention)
        decoder = base.model.get_decoder()
        parts: dict[str, Any] = {
            "embed_tokens": base.model.get_input_embeddings(),
            "layers": getattr(decoder, "layers", None),
            "norm": getattr(decoder, "norm", None),
            "rotary_emb": getattr(decoder, "rotary_emb", None),
            "lm_head": base.model.get_output_embeddings(),
        }
        missing = [name for name, part in parts.items() if part is None]
        if missing:
            raise ModelError(
                f"base_model {base.name!r} ({type(base.model).__name__}) has no "
                f"{', '.join(missing)}; allowed: models built like Llama."
            )
        self.embedding: nn.Module = parts["embed_tokens"]
        self.layers: nn.ModuleList = parts["layers"]
        self.norm: nn.Module = parts["norm"]
        self.rotary: nn.Module = parts["rotary_emb"]
        self.head: nn.Linear = parts["lm_head"]
        if getattr(self.head, "bias", None) is not None:
            raise ModelError(f"base_model {base.name!r} has a bias on its head; allowed: none.")
        self._check_against_model(base)
        base.model.set_attn_implementation(attention.NAME)

    def forward(self, tokens_T: torch.Tensor, layout: AdapterLayout) -> torch.Tensor:
        """The final hidden state [T, D] of the rows that ``layout`` describes.

        Args:
            tokens_T: int64 [T], the samples one after the other, no padding.
            layout: Rows -> samples and jobs; bound for the length of this call.
        """
        with bind_layout(layout):
            hidden = self.embedding(tokens_T[None])
            positions = layout.row_position_T[None]
            rotary = self.rotary(hidden, position_ids=positions)
            for layer in self.layers:
                hidden = layer(
                    hidden,
                    attention_mask=None,
                    position_ids=positions,
                    position_embeddings=rotary,
                    use_cache=False,
                )
            return self.norm(hidden)[0]

    @torch.no_grad()
    def _check_against_model(self, base: Base) -> None:
        """Two packed samples give the logits that the model's own forward gives each alone."""
        vocabulary = self.head.weight.shape[0]
        samples = [torch.arange(3, 10) % vocabulary, torch.arange(20, 24) % vocabulary]
        expected = torch.cat([base.model(input_ids=sample[None]).logits[0] for sample in samples])
        segment = Segment(-1, 0, 0, range(len(samples)), [len(sample) for sample in samples])
        base.model.set_attn_implementation(attention.NAME)
        layout = AdapterLayout.build([segment], {}, training=False)
        found = self.head(self(torch.cat(samples), layout))
        error = float((found - expected).norm() / expected.norm())
        if not error <= _TOLERANCE[base.dtype]:
            raise ModelError(
                f"base_model {base.name!r} ({type(base.model).__name__}) gives other logits when "
                f"its layers are called one by one (relative error {error:.2g}): it does something "
                "between them that stages do not know. Choose a model built like Llama."
            )
