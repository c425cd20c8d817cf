"""The public ops: one pass forward and one backward, tied into autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from lorafusion.errors import KernelError
from lorafusion.kernels.backend import choose_backend, implementation
from lorafusion.kernels.gated_product import reference


def gated_product(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    """``act(gate) · up`` (Shazeer 2020, arXiv:2002.05202), element by element.

    For the backward ``gate`` and ``up`` are kept, and not act(gate), which is computed again. It is
    rounded to the dtype before it meets ``up``, as torch does.

    Args:
        gate: [..., F].
        up: As ``gate``.
        activation: A key of :data:`ACTIVATIONS`.

    Returns:
        [..., F], contiguous.

    Raises:
        KernelError: They are not alike, or there is no such activation.
    """
    if gate.shape != up.shape or gate.dtype != up.dtype:
        found = f"{list(up.shape)} of {up.dtype}"
        raise KernelError(
            f"gated_product: up is {found}; expected gate's {list(gate.shape)} of {gate.dtype}."
        )
    backend = _backend(gate, activation)
    if backend == "reference":
        return reference.gated_product(gate, up, activation)
    rows = [x.flatten(0, -2) for x in (gate, up)]
    return _GatedProduct.apply(*rows, activation, backend).view(gate.shape)


def gated_halves(x: torch.Tensor, activation: str, *, gate_first: bool = True) -> torch.Tensor:
    """The same where one linear has given both side by side, as in Phi-3.

    The gradient is written as one tensor: that of two halves would be copied together.

    Args:
        x: [..., 2F].
        activation: As above.
        gate_first: Which half is activated.

    Returns:
        [..., F], contiguous.

    Raises:
        KernelError: There is no such activation, or 2F is odd.
    """
    if x.shape[-1] % 2:
        raise KernelError(f"gated_halves: x is {list(x.shape)}; expected an even last length.")
    backend = _backend(x, activation)
    if backend == "reference":
        return reference.gated_product(*_halves(x, gate_first), activation)
    y = _GatedHalves.apply(x.flatten(0, -2), activation, gate_first, backend)
    return y.view(*x.shape[:-1], x.shape[-1] // 2)


class _GatedProduct(torch.autograd.Function):
    """On rows [T, F] of any stride."""

    @staticmethod
    def forward(
        ctx: Any, gate_TF: torch.Tensor, up_TF: torch.Tensor, activation: str, backend: str
    ) -> torch.Tensor:
        gate_TF, up_TF = _contiguous_rows(gate_TF), _contiguous_rows(up_TF)
        ctx.save_for_backward(gate_TF, up_TF)
        ctx.activation, ctx.backend = activation, backend
        return implementation("gated_product", backend).gated_product(gate_TF, up_TF, activation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TF: torch.Tensor) -> tuple[Any, ...]:
        gate_TF, up_TF = ctx.saved_tensors
        dgate_TF, dup_TF = (dy_TF.new_empty(dy_TF.shape) for _ in range(2))
        run = implementation("gated_product", ctx.backend).gated_product_backward
        run(dy_TF.contiguous(), (gate_TF, up_TF), (dgate_TF, dup_TF), ctx.activation)
        return dgate_TF, dup_TF, None, None


class _GatedHalves(torch.autograd.Function):
    """On rows [T, 2F] of any stride."""

    @staticmethod
    def forward(
        ctx: Any, x_TG: torch.Tensor, activation: str, gate_first: bool, backend: str
    ) -> torch.Tensor:
        x_TG = _contiguous_rows(x_TG)
        ctx.save_for_backward(x_TG)
        ctx.activation, ctx.gate_first, ctx.backend = activation, gate_first, backend
        run = implementation("gated_product", backend).gated_product
        return run(*_halves(x_TG, gate_first), activation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TF: torch.Tensor) -> tuple[Any, ...]:
        (x_TG,) = ctx.saved_tensors
        dx_TG = x_TG.new_empty(x_TG.shape)
        given, found = (_halves(x, ctx.gate_first) for x in (x_TG, dx_TG))
        run = implementation("gated_product", ctx.backend).gated_product_backward
        run(dy_TF.contiguous(), given, found, ctx.activation)
        return dx_TG, None, None, None


def _halves(x: torch.Tensor, gate_first: bool) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = x.chunk(2, dim=-1)
    return (first, second) if gate_first else (second, first)


def _contiguous_rows(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _backend(x: torch.Tensor, activation: str) -> str:
    if activation not in reference.ACTIVATIONS:
        allowed = ", ".join(reference.ACTIVATIONS)
        raise KernelError(f"gated_product: activation is {activation!r}; allowed: {allowed}.")
    backend = choose_backend(x.device)
    if backend == "reference" or implementation("gated_product", backend).takes(x):
        return backend
    return "reference"
