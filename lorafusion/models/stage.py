"""The layers that one pipeline rank holds, called one by one on a packed microbatch.

A stage never runs the layers through the model's own forward: that would build masks over the whole
microbatch, and a slice of ``model.layers`` would count layers from zero again.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from lorafusion.errors import ModelError
from lorafusion.kernels.binding import bind_layout
from lorafusion.kernels.layout import AdapterLayout, Segment
from lorafusion.models import attention
from lorafusion.models.check import check_stage
from lorafusion.models.decoder import Decoder
from lorafusion.models.head import Head
from lorafusion.models.load import Base
from lorafusion.models.loss import weighted_cross_entropy
from lorafusion.models.refusals import longest_sample


class Stage(nn.Module):
    """Embedding, decoder layers, final norm and head of a causal LM of transformers."""

    def __init__(self, base: Base) -> None:
        """Take the base's modules; they stay the base's own, and its attention becomes packed.

        Raises:
            ModelError: The base has other parts, or gives other logits through the stage.
        """
        super().__init__()
        from transformers import AttentionInterface

        AttentionInterface.register(attention.NAME, attention.packed_attention)
        head = Head.of(base.model)
        if head is None:
            raise ModelError(
                f"base_model {base.name!r} ({type(base.model).__name__}) has no linear head; "
                "allowed: causal LMs such as those of docs/models.md."
            )
        base.model.set_attn_implementation(attention.NAME)
        self.head = head
        self._longest = longest_sample(base.model.config)
        self._decoder = Decoder(
            base.model.get_decoder(), base.model.config.get_text_config().num_hidden_layers
        )
        self.layers: nn.ModuleList = self._decoder.layers
        check_stage(base, self._packed, head, name=attention.NAME)

    def forward(self, tokens_T: torch.Tensor, layout: AdapterLayout) -> torch.Tensor:
        """The final hidden state [T, D] of the rows that ``layout`` describes.

        Args:
            tokens_T: int64 [T], the samples one after the other, no padding.
            layout: Rows -> samples and jobs; bound for the length of this call.

        Raises:
            ModelError: A sample is longer than the base can take, see :func:`longest_sample`.
        """
        self._check_lengths(layout)
        with bind_layout(layout):
            hidden, calls = self._decoder.open(tokens_T, layout.row_position_T)
            for layer, call in zip(self.layers, calls, strict=True):
                hidden = layer(hidden, *call.args, **call.kwargs)
            return self._decoder.close(hidden)[0]

    def loss(
        self, hidden_LD: torch.Tensor, targets_L: torch.Tensor, weights_L: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The weighted sum of cross-entropies, see :func:`weighted_cross_entropy`.

        Args:
            hidden_LD: [L, D], the final hidden state at the labelled rows.
            targets_L: int64 [L].
            weights_L: [L], each row's weight in the sum.

        Returns:
            The sum, differentiable in ``hidden_LD``, and the cross-entropy of each row [L].
        """
        weights_L = weights_L.to(torch.promote_types(hidden_LD.dtype, torch.float32))
        return weighted_cross_entropy(hidden_LD, self.head, targets_L, weights_L)

    def _check_lengths(self, layout: AdapterLayout) -> None:
        rows = max((stop - start for start, stop in pairwise(layout.sample_starts)), default=0)
        if self._longest is not None and rows > self._longest:
            raise ModelError(
                f"a sample has {rows} tokens, and the base takes up to {self._longest}. Lower "
                "max_seq_len."
            )

    def _packed(self, samples: list[torch.Tensor]) -> torch.Tensor:
        segment = Segment(-1, 0, 0, range(len(samples)), [len(sample) for sample in samples])
        return self(torch.cat(samples), AdapterLayout.build([segment], {}, training=False))
