"""What a call of :func:`lora_linear` must look like, checked before anything is launched."""

from __future__ import annotations

import torch

from lorafusion.errors import KernelError
from lorafusion.kernels.layout import AdapterLayout, FusedForm, ModuleAdapters

BASE_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """LoRA products, S and dS are float32; float64 for a float64 base."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_call(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None,
    layout: AdapterLayout,
    adapters: ModuleAdapters,
) -> None:
    """Check the arguments of one call against each other.

    Raises:
        KernelError: Naming the argument, what it is, and what was expected.
    """
    rows, columns = x_TK.shape
    if x_TK.dtype not in BASE_DTYPES:
        _refuse("x", "dtype", x_TK.dtype, " or ".join(map(str, BASE_DTYPES)))
    if columns and x_TK.stride(1) != 1:
        _refuse("x", "strides", x_TK.stride(), "contiguous rows; pass x.contiguous()")
    if rows != layout.segment_starts[-1]:
        _refuse("x", "rows", rows, f"{layout.segment_starts[-1]}, the rows of the layout")
    _like("weight", weight_NK, x_TK, (None, columns))
    if bias_N is not None:
        _like("bias", bias_N, x_TK, (weight_NK.shape[0],))
    for slot in layout.segment_slots:
        form = adapters.forms.get(slot)
        if form is not None:
            _check_form(slot, form, x_TK, weight_NK.shape)


def check_gradient(dy_TN: torch.Tensor, x_TK: torch.Tensor, weight_NK: torch.Tensor) -> None:
    """The gradient that comes back is as tall as X, as wide as W's rows, and of X's dtype.

    Raises:
        KernelError: It is not.
    """
    _like("dy", dy_TN, x_TK, (x_TK.shape[0], weight_NK.shape[0]))


def _check_form(slot: int, form: FusedForm, x_TK: torch.Tensor, shape_NK: torch.Size) -> None:
    N, K = shape_NK
    rank = form.A.shape[0] if form.A.ndim == 2 else 0
    if rank < 1 or form.A.shape != (rank, K) or form.B.shape != (N, rank):
        found = f"{list(form.A.shape)} and {list(form.B.shape)}"
        expected = f"[r, {K}] and [{N}, r] of one rank r >= 1"
        _refuse(f"slot {slot}: A and B", "shapes", found, expected)
    wanted = accumulation_dtype(x_TK.dtype)
    for name, factor in (("A", form.A), ("B", form.B)):
        if factor.dtype != wanted:
            _refuse(f"slot {slot}: {name}", "dtype", factor.dtype, wanted)
        if factor.device != x_TK.device:
            _refuse(f"slot {slot}: {name}", "device", factor.device, f"x's, {x_TK.device}")
    if not 0 <= form.dropout < 1 << 16:
        _refuse(f"slot {slot}: dropout", "threshold", form.dropout, "0 to 65535")


def _like(
    name: str, tensor: torch.Tensor, x_TK: torch.Tensor, shape: tuple[int | None, ...]
) -> None:
    """``tensor`` has this shape (None: any length), and the dtype and device of x."""
    fits = tensor.ndim == len(shape) and all(
        want is None or want == found for want, found in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        _refuse(name, "shape", list(tensor.shape), f"[{wanted}]")
    if tensor.dtype != x_TK.dtype:
        _refuse(name, "dtype", tensor.dtype, f"x's, {x_TK.dtype}")
    if tensor.device != x_TK.device:
        _refuse(name, "device", tensor.device, f"x's, {x_TK.device}")


def _refuse(what: str, kind: str, found: object, expected: object) -> None:
    raise KernelError(f"lora_linear: {what} has {kind} {found}; expected {expected}.")
