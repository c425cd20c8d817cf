"""The compiled loops of the loss as calls on tensors; see cross_entropy.cpp."""

from __future__ import annotations

import ctypes

import torch

from lorafusion.kernels.cross_entropy.head import Head
from lorafusion.kernels.native.calls import DTYPES
from lorafusion.kernels.native.library import library

_int64, _pointer = ctypes.c_int64, ctypes.c_void_p


class _Chunk(ctypes.Structure):
    """As ``Chunk`` in cross_entropy.cpp."""

    _fields_ = (
        ("logits", _pointer),
        ("words", _int64),
        ("rows", _int64),
        ("stride", _int64),
        ("bias", _pointer),
        ("scale", ctypes.c_double),
        ("softcap", ctypes.c_double),
        ("targets", _pointer),
        ("weights", _pointer),
        ("losses", _pointer),
    )


class LossCall:
    """The rows of a call, of which one chunk after another is done."""

    def __init__(
        self,
        head: Head,
        targets_L: torch.Tensor,
        weights_L: torch.Tensor,
        loss_L: torch.Tensor,
    ) -> None:
        """Nothing runs yet; ``loss_L``, float32 [L], is filled chunk by chunk."""
        self._head = head
        self._rows = (targets_L.contiguous(), weights_L.contiguous(), loss_L)
        self._bias_V = None if head.bias_V is None else head.bias_V.detach().float().contiguous()

    def run(self, products_VL: torch.Tensor, part: slice, *, gradient: bool) -> None:
        """Fill a chunk's losses, and with ``gradient`` its products with their own gradient.

        Args:
            products_VL: W · hiddenᵀ of the chunk's rows, each word's contiguous. The columns of
                its storage up to a multiple of 64 bytes are read and written too.
            part: Where the rows are among all.
            gradient: Of the weighted sum.
        """
        loops = library()
        assert loops is not None
        targets, weights, losses = (tensor[part].data_ptr() for tensor in self._rows)
        words, rows = products_VL.shape
        chunk = _Chunk(
            products_VL.data_ptr(),
            words,
            rows,
            products_VL.stride(0),
            None if self._bias_V is None else self._bias_V.data_ptr(),
            self._head.scale,
            self._head.softcap or 0.0,
            targets,
            weights,
            losses,
        )
        loops.lorafusion_cross_entropy(
            DTYPES[products_VL.dtype], ctypes.byref(chunk), int(gradient)
        )
