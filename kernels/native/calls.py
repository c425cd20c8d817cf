"""The compiled loops as calls on tensors. Each does all jobs of a microbatch at once."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

import torch

from lorafusion.kernels.layout import AdapterLayout, Rows
from lorafusion.kernels.native.library import library

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_int64, _pointer = ctypes.c_int64, ctypes.c_void_p


class _Job(ctypes.Structure):
    """As ``Job`` in lora.cpp."""

    _fields_ = (
        ("start", _int64),
        ("stop", _int64),
        ("rank", _int64),
        ("scale", ctypes.c_double),
        ("threshold", _int64),
        ("a", _pointer),
        ("b", _pointer),
        ("gradient", _pointer),
    )


class _Keys(ctypes.Structure):
    """As ``Keys`` in lora.cpp."""

    _fields_ = (
        ("prefix", _pointer),
        ("sample", _pointer),
        ("position", _pointer),
        ("module", ctypes.c_uint64),
    )


def takes(x: torch.Tensor) -> bool:
    """Whether the loops run on this tensor: built, float32 or bfloat16, contiguous rows."""
    return x.dtype in DTYPES and x.stride(-1) == 1 and library() is not None


def down(
    x_TK: torch.Tensor, s_TR: torch.Tensor, layout: AdapterLayout, module: int, rows: Sequence[Rows]
) -> None:
    """Fill the ranks of ``s_TR`` with D(X) Aᵀ."""
    jobs = _Jobs(rows)
    _run("down", x_TK, *jobs.passed, _keys(layout, module), *_ranks(s_TR))


def up(y_TN: torch.Tensor, s_TR: torch.Tensor, rows: Sequence[Rows]) -> None:
    """Add s · S Bᵀ to ``y_TN`` in place."""
    jobs = _Jobs(rows)
    _run("up", y_TN, *jobs.passed, *_ranks(s_TR))


def grad_down(
    dy_TN: torch.Tensor,
    s_TR: torch.Tensor,
    ds_TR: torch.Tensor,
    rows: Sequence[Rows],
    db: Mapping[int, torch.Tensor],
) -> None:
    """Fill the ranks of ``ds_TR`` with s · dY B, and each job's ``db`` with s · dYᵀ S."""
    jobs = _Jobs(rows, db)
    _run("grad_down", dy_TN, *jobs.passed, _pointer(s_TR.data_ptr()), *_ranks(ds_TR))


def grad_input(
    dx_TK: torch.Tensor,
    ds_TR: torch.Tensor,
    layout: AdapterLayout,
    module: int,
    rows: Sequence[Rows],
) -> None:
    """Add mask ⊙ (dS A) / (1 - p) to ``dx_TK`` in place."""
    jobs = _Jobs(rows)
    _run("grad_input", dx_TK, *jobs.passed, _keys(layout, module), *_ranks(ds_TR))


def grad_a(
    x_TK: torch.Tensor,
    ds_TR: torch.Tensor,
    layout: AdapterLayout,
    module: int,
    rows: Sequence[Rows],
    da: Mapping[int, torch.Tensor],
) -> None:
    """Fill each job's ``da`` with dSᵀ D(X)."""
    jobs = _Jobs(rows, da)
    _run("grad_a", x_TK, *jobs.passed, _keys(layout, module), *_ranks(ds_TR))


class _Jobs:
    """The table of jobs, and what it points to, for as long as a call runs."""

    def __init__(
        self, rows: Sequence[Rows], gradients: Mapping[int, torch.Tensor] | None = None
    ) -> None:
        self._factors = [(r.form.A.contiguous(), r.form.B.contiguous()) for r in rows]
        self._table = (_Job * len(rows))()
        for job, row, (a, b) in zip(self._table, rows, self._factors, strict=True):
            job.start, job.stop, job.rank = row.start, row.stop, a.shape[0]
            job.scale, job.threshold = row.form.scale, row.form.dropout
            job.a, job.b = a.data_ptr(), b.data_ptr()
            if gradients and row.slot in gradients:
                job.gradient = gradients[row.slot].data_ptr()

    @property
    def passed(self) -> tuple[ctypes.Array[_Job], ctypes.c_int64]:
        return self._table, _int64(len(self._table))


def _keys(layout: AdapterLayout, module: int) -> object:
    tensors = (layout.row_prefix_T, layout.row_sample_T, layout.row_position_T)
    return ctypes.byref(_Keys(*(tensor.data_ptr() for tensor in tensors), module))


def _ranks(s_TR: torch.Tensor) -> tuple[ctypes.c_void_p, ctypes.c_int64]:
    return _pointer(s_TR.data_ptr()), _int64(s_TR.shape[1])


def _run(op: str, wide: torch.Tensor, *arguments: object) -> None:
    """Call an op on its [T, K] or [T, N] tensor."""
    loops = library()
    assert loops is not None
    shape = (_int64(wide.stride(0)), _int64(wide.shape[1]))
    function = getattr(loops, f"lorafusion_{op}")
    function(DTYPES[wide.dtype], _pointer(wide.data_ptr()), *shape, *arguments)
