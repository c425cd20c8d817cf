"""Which adapter each row of a batch goes through, and the layout that says so to the op."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import nn

from lorafusion.errors import KernelError
from lorafusion.kernels.layout import AdapterLayout

BASE = "__base__"
"""PEFT's name for rows without an adapter."""


@dataclass(frozen=True)
class BatchRows:
    """The adapters of a batch's rows, for the layers of one model."""

    names: tuple[str, ...]
    layers: frozenset[int]
    """``id`` of each: layers of another model that runs in the block are not meant."""


_BOUND: ContextVar[tuple[BatchRows, ...]] = ContextVar("bound_batch_rows", default=())


def rows_of(layer: nn.Module) -> BatchRows | None:
    """The rows bound for the model of ``layer``."""
    for rows in _BOUND.get():
        if id(layer) in rows.layers:
            return rows
    return None


@contextmanager
def bind_rows(rows: BatchRows) -> Generator[None]:
    """Route the batches of a model's forwards in the block."""
    token = _BOUND.set((rows, *_BOUND.get()))
    try:
        yield
    finally:
        _BOUND.reset(token)


@contextmanager
def carried_to_recomputation(model: nn.Module, rows: BatchRows) -> Generator[None]:
    """Bind the rows again where transformers' gradient checkpointing recomputes a layer.

    That is in the backward, which may run after the block, and on a GPU on autograd's threads.
    """
    found: list[Any] = [m for m in model.modules() if "_gradient_checkpointing_func" in vars(m)]
    before = [(module, module._gradient_checkpointing_func) for module in found]
    try:
        for module, function in before:
            module._gradient_checkpointing_func = _Carrying(function, rows)
        yield
    finally:
        for module, function in before:
            module._gradient_checkpointing_func = function


@contextmanager
def marked(layers: Collection[Any]) -> Generator[None]:
    """Say on each layer that it is in a block, for torch.compile."""
    for layer in layers:
        layer.in_rows = True
    try:
        yield
    finally:
        for layer in layers:
            layer.in_rows = False


@dataclass(frozen=True)
class _Carrying:
    checkpoint: Any
    rows: BatchRows

    def __call__(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        def with_rows(*inner: Any, **named: Any) -> Any:
            with bind_rows(self.rows):
                return function(*inner, **named)

        return self.checkpoint(with_rows, *args, **options)


def segments(x: torch.Tensor, names: Sequence[str] | None) -> tuple[tuple[int, str | None], ...]:
    """(rows, adapter) of each run of one adapter; None stands for all active ones."""
    rows = x.shape[:-1].numel()
    if names is None:
        return ((rows, None),)
    each = rows // len(names) if names else 0
    return tuple((each * len(list(run)), name) for name, run in groupby(names))


@functools.lru_cache(maxsize=32)
def layout_of(lengths: tuple[int, ...], device: torch.device) -> AdapterLayout:
    """One segment a slot, of these lengths, in order.

    A slot may not come twice in a layout. Runs of one adapter that are apart have slots of their
    own with the same factors, and autograd adds their gradients up.

    The rows of all calls are alike: a call's dropout differs by the key of its module. So a layout
    is made once for a shape, and nothing is copied to a GPU from call to call.
    """
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    with torch.inference_mode(False):
        zeros = torch.zeros(starts[-1], dtype=torch.int64, device=device)
        return AdapterLayout(
            segment_starts=tuple(starts),
            segment_slots=tuple(range(len(lengths))),
            sample_starts=tuple(starts),
            row_prefix_T=zeros,
            row_sample_T=zeros,
            row_position_T=torch.arange(starts[-1], device=device),
            modules={},
            training=True,  # a form's own threshold says whether it drops
        )


def check_batch(x: torch.Tensor, rows: BatchRows) -> None:
    """The batch has as many rows as there are adapters.

    Raises:
        KernelError: It has not.
    """
    if len(x) != len(rows.names):
        raise KernelError(
            f"adapter_rows: the input of a layer has {len(x)} rows in dimension 0, but "
            f"batch_adapters has {len(rows.names)}; allowed: one adapter, or None, for each row of "
            "the batch. A layer that flattens the batch, such as an expert, cannot be routed."
        )
