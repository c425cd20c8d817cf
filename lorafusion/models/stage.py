"""The layers that one pipeline rank holds, called one by one on a packed microbatch.

A stage never runs the layers through the model's own forward: that would build masks over the whole
microbatch, and a slice of ``model.layers`` would count layers from zero again.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lorafusion.errors import ModelError
from lorafusion.kernels.binding import bind_layout, bound_scratch
from lorafusion.kernels.cross_entropy import Head, cross_entropy
from lorafusion.kernels.layout import AdapterLayout, Segment
from lorafusion.models import attention
from lorafusion.models.check import check_stage
from lorafusion.models.decoder import Decoder, LayerCall
from lorafusion.models.fused import fuse_elementwise
from lorafusion.models.head import head_of
from lorafusion.models.load import Base
from lorafusion.models.refusals import longest_sample
from lorafusion.models.shared_inputs import watch_inputs


class Stage(nn.Module):
    """Consecutive layers of a causal LM of transformers.

    The first stage has the embedding too, the last one the final norm and the head.
    """

    def __init__(self, base: Base, *, recompute: bool = False) -> None:
        """Take the base's modules; they stay the base's own, and its attention becomes packed.

        Args:
            base: The part of it that this stage holds.
            recompute: Keep each layer's input alone, and repeat its forward in the backward.

        Raises:
            ModelError: The base has other parts, or gives other logits through the stage.
        """
        super().__init__()
        attention.register()
        head = head_of(base.model)
        if head is None and base.part.last:
            raise ModelError(
                f"base_model {base.name!r} ({type(base.model).__name__}) has no linear head; "
                "allowed: causal LMs such as those of docs/models.md."
            )
        base.model.set_attn_implementation(attention.NAME)
        self.part = base.part
        self.dtype = base.dtype
        self.width: int = base.model.config.get_text_config().hidden_size
        self._head = head
        self._base = base
        self._recompute = recompute
        self._longest = longest_sample(base.model.config)
        self._decoder = Decoder(base.model.get_decoder(), base.part, self.width)
        self.layers: nn.ModuleList = self._decoder.layers
        self.fused = fuse_elementwise(base.model, base.names.linears, base.open)
        """What runs as one pass where transformers takes several."""
        with watch_inputs(base.model, base.names.linears) as shared_inputs:
            check_stage(base, self._packed, self._opened, lambda: self.head, name=attention.NAME)
        self.shared_inputs = tuple(shared_inputs)
        """Full names of linears that are given the same tensor, for :class:`AdapterBank`."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.layers.parameters()).device

    @property
    def head(self) -> Head | None:
        """On the last stage. Of a base that is cut over ranks, whole until another part is used."""
        self._base.open(self._base.names.head)
        return self._head

    def forward(self, entering: torch.Tensor, layout: AdapterLayout) -> torch.Tensor:
        """The hidden state [T, D] behind the layers, on the last stage behind the final norm.

        Args:
            entering: What the rows of ``layout`` are. On the first stage tokens, int64 [T], the
                samples one after the other, no padding; else the hidden state [T, D] of the stage
                before.
            layout: Rows -> samples and jobs; bound for the length of this call.

        Raises:
            ModelError: A sample is longer than the base can take, see :func:`longest_sample`.
        """
        self._check_lengths(layout)
        positions_T = layout.row_position_T.to(entering.device)
        with bind_layout(layout):
            if self.part.first:
                hidden, calls = self._decoder.open(entering, positions_T)
            else:
                hidden = entering[None]
                with torch.no_grad():
                    calls = self._decoder.open(entering, positions_T).calls
            for index in self.part.layers:
                hidden = self._run_layer(self.layers[index], hidden, calls[index], layout)
            return self._decoder.close(hidden)[0]

    def loss(
        self, hidden_LD: torch.Tensor, targets_L: torch.Tensor, weights_L: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The weighted sum of cross-entropies, see :func:`cross_entropy`.

        Args:
            hidden_LD: [L, D], the final hidden state at the labelled rows.
            targets_L: int64 [L].
            weights_L: [L], each row's weight in the sum.

        Returns:
            The sum, differentiable in ``hidden_LD``, and the cross-entropy of each row [L].
        """
        head = self.head
        assert head is not None, "the last stage alone has a head"
        return cross_entropy(hidden_LD, head, targets_L, weights_L)

    def _run_layer(
        self, layer: nn.Module, hidden: torch.Tensor, call: LayerCall, layout: AdapterLayout
    ) -> torch.Tensor:
        if not (self._recompute and torch.is_grad_enabled()):
            return _call(layer, hidden, call)

        def run(hidden: torch.Tensor) -> torch.Tensor:
            # In the repetition another microbatch may be bound, or nothing, on a thread of
            # autograd's. context_fn would do for one repetition only.
            with bind_layout(layout):
                return _call(layer, hidden, call)

        # Dropout is a function of rows, and the base has none: no state of a generator matters.
        return checkpoint(run, hidden, use_reentrant=False, preserve_rng_state=False)

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

    def _opened(self, sample: torch.Tensor) -> torch.Tensor:
        """What the model's own forward gives its first layer for a hidden state [T, D]."""
        positions_T = torch.arange(len(sample), device=sample.device)
        return self._decoder.open(sample, positions_T).hidden[0]


def _call(layer: nn.Module, hidden: torch.Tensor, call: LayerCall) -> torch.Tensor:
    output = layer(hidden, *call.args, **call.kwargs)
    left = bound_scratch()
    assert not left, f"linears that were to run with others were not called: {sorted(left)}"
    return output
