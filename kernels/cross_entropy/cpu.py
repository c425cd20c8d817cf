"""The CPU's: torch's products, and the compiled loops between them; without them torch ops.

The loops have the logits of a chunk as [V, L], words by rows. On Zen 3 with 49,152 words MKL makes
them so from W [V, D] in 0.6 to 0.8 of the time of [L, V]; the gradient's product takes as long
either way. And a row is a lane of a vector: nothing is ever added up across lanes.
"""

from __future__ import annotations

import torch

from lorafusion.kernels.checks import accumulation_dtype
from lorafusion.kernels.cross_entropy.chunks import chunks
from lorafusion.kernels.cross_entropy.head import Head
from lorafusion.kernels.native import loss_calls
from lorafusion.kernels.native.calls import takes
from lorafusion.kernels.packed import round_up

CHUNK_BYTES = 48 << 20
"""Of logits: 256 rows of 49,152 words in float32. Each chunk reads all of W twice: a row's products
took 2.1 ms in chunks of 128, 1.6 in chunks of 256, 1.7 in chunks of 512."""
TORCH_BYTES = 24 << 20
"""The same for the torch ops, which hold further tensors of this size: two with a cap."""
_LINE = 64


def cross_entropy(
    hidden_LD: torch.Tensor,
    head: Head,
    targets_L: torch.Tensor,
    weights_L: torch.Tensor,
    gradient_LD: torch.Tensor | None,
) -> torch.Tensor:
    """The cross-entropy of each row, [L]; fills ``gradient_LD`` where there is one."""
    if takes(hidden_LD):
        return _in_loops(hidden_LD, head, targets_L, weights_L, gradient_LD)
    return _in_torch(hidden_LD, head, targets_L, weights_L, gradient_LD)


def _in_loops(
    hidden_LD: torch.Tensor,
    head: Head,
    targets_L: torch.Tensor,
    weights_L: torch.Tensor,
    gradient_LD: torch.Tensor | None,
) -> torch.Tensor:
    words, size = len(head.weight_VD), hidden_LD.element_size()
    parts = list(chunks(len(hidden_LD), words * size, CHUNK_BYTES))
    longest = max((part.stop - part.start for part in parts), default=0)
    room_VL = hidden_LD.new_empty(words, round_up(longest, _LINE // size))
    loss_L = hidden_LD.new_empty(len(hidden_LD), dtype=torch.float32)
    call = loss_calls.LossCall(head, targets_L, weights_L, loss_L)
    for part in parts:
        logits_VL = room_VL[:, : part.stop - part.start]
        torch.mm(head.weight_VD, hidden_LD[part].T, out=logits_VL)
        call.run(logits_VL, part, gradient=gradient_LD is not None)
        if gradient_LD is not None:
            # A single row's product is one of matrix and vector: 28 ms, and 17 where contiguous.
            given_VL = logits_VL.contiguous() if logits_VL.shape[1] == 1 else logits_VL
            torch.mm(given_VL.T, head.weight_VD, out=gradient_LD[part])
    return loss_L


def _in_torch(
    hidden_LD: torch.Tensor,
    head: Head,
    targets_L: torch.Tensor,
    weights_L: torch.Tensor,
    gradient_LD: torch.Tensor | None,
) -> torch.Tensor:
    dtype = accumulation_dtype(hidden_LD.dtype)
    loss_L = hidden_LD.new_empty(len(hidden_LD), dtype=dtype)
    for part in chunks(len(hidden_LD), len(head.weight_VD) * dtype.itemsize, TORCH_BYTES):
        target_L1 = targets_L[part, None]
        logits_LV, slope = _logits(hidden_LD[part], head)
        most_L1 = logits_LV.amax(dim=1, keepdim=True)
        own_L1 = most_L1 - logits_LV.gather(1, target_L1)
        softmax_LV = logits_LV.sub_(most_L1).exp_()
        sum_L1 = softmax_LV.sum(dim=1, keepdim=True)
        loss_L[part] = (sum_L1.log() + own_L1).squeeze(1)
        if gradient_LD is not None:
            # d loss / d logits = softmax - one-hot of the target
            softmax_LV.div_(sum_L1)
            softmax_LV.scatter_add_(1, target_L1, softmax_LV.new_full(target_L1.shape, -1.0))
            softmax_LV.mul_(weights_L[part, None])
            if slope is not None:
                softmax_LV.mul_(slope)
            weight_VD = head.weight_VD
            gradient_LD[part] = softmax_LV.to(weight_VD.dtype) @ weight_VD
    return loss_L


def _logits(
    hidden_LD: torch.Tensor, head: Head
) -> tuple[torch.Tensor, torch.Tensor | float | None]:
    """Logits, and their slope over ``hidden · Wᵀ`` where that is not 1."""
    logits_LV = head.linear(hidden_LD)
    if head.softcap is None:
        return logits_LV, None if head.scale == 1.0 else head.scale
    capped_LV = logits_LV.div_(head.softcap).tanh_()
    # d c·tanh(s·x/c) / dx = s · (1 - tanh²)
    slope_LV = capped_LV.square().neg_().add_(1).mul_(head.scale)
    return capped_LV.mul_(head.softcap), slope_LV
