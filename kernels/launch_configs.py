"""The shape of each kernel's work: tile sizes, warps and stages, by op, dtype and architecture.

Importing this needs no triton. ``examples`` gives everything that compiling a kernel ahead of time
needs: the function, its signature and its constants.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

OPS = ("down", "up", "grad_down", "grad_input", "grad_a")
SHARED_OPS = {f"shared_{op}": op for op in ("down", "up", "grad_input", "grad_a")}
"""The parts of several projections of one X -> the op of a single one."""
LOSS_OPS = ("cross_entropy",)
ELEMENTWISE_OPS = ("rms_norm", "rotary", "gated_product")
"""Their tiles are in :mod:`lorafusion.kernels.elementwise_configs`."""
PASSES = (*LOSS_OPS, *ELEMENTWISE_OPS)
"""They know no adapters, and have no matrix products."""


@dataclass(frozen=True)
class LaunchConfig:
    """How one op is cut into programs.

    The letters are the op's own: up multiplies [BM, BK] by [BK, BN]; down reads [BM, BK] of X, as
    does grad_a; grad_down reads [BM, BN] of dY. Sizes are powers of two, at least 16.
    """

    BM: int
    BN: int = 0
    BK: int = 0
    warps: int = 4
    stages: int = 3
    group: int = 8
    """up, grad_input: row tiles that run side by side, so that they share the weight in cache."""
    span: int = 0
    """grad_down: columns of dY that one program walks over; grad_a: rows of X. A multiple of the
    tile's."""
    tma: bool = False
    """up, grad_input: persistent programs that load through tensor descriptors."""
    BR: int = 64
    """The most ranks that a program works on at a time."""
    atomic: bool | None = None
    """grad_down: add dB in any order (True), or partial sums of it in a fixed one (False). None: in
    a fixed one, unless the partial sums exceed 30% of dY's bytes; always in a fixed one where
    ``torch.use_deterministic_algorithms`` is on."""


def default_config(op: str, dtype: torch.dtype, arch: str) -> LaunchConfig:
    """What an op runs with where nothing was tuned.

    Args:
        op: One of ``OPS``, ``SHARED_OPS`` or ``LOSS_OPS``.
        dtype: Of the base.
        arch: See :func:`architecture`.
    """
    if op in LOSS_OPS:
        return LaunchConfig(BM=1, BN=4096, warps=8, stages=1)
    from lorafusion.kernels.config_files import defaults  # which imports LaunchConfig

    config = defaults(arch)[dtype_class(dtype), SHARED_OPS.get(op, op)]
    return _for_three(op, config, dtype) if op in SHARED_OPS else config


def _for_three(op: str, config: LaunchConfig, dtype: torch.dtype) -> LaunchConfig:
    """Three linears have three sums or three masks in registers, and W is found by its address.

    With the single ops' tiles down spilled 92 bytes a thread on sm_80 (1.6 KB in float32),
    grad_input and grad_a 64.
    """
    single = dtype_class(dtype) == "float32"
    slim = single or op in ("shared_down", "shared_grad_a")
    ranks = 32 if op == "shared_up" or (op == "shared_down" and not single) else 16
    depth = max(16, config.BK // 2) if slim else config.BK
    return replace(config, BK=depth, BR=min(config.BR, ranks), tma=False)


def dtype_class(dtype: torch.dtype) -> str:
    """``half`` or ``float32``: the 16-bit formats share their configurations."""
    return "float32" if dtype == torch.float32 else "half"


@functools.cache
def architecture(device: torch.device) -> str:
    """``sm_90`` or ``gfx942``, say; ``cpu`` where kernels are interpreted."""
    if device.type == "cpu":
        return "cpu"
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def choose_config(op: str, x: torch.Tensor, chunk: int, columns: int = 0) -> LaunchConfig:
    """The configuration of a launch: what was tuned on this GPU for such shapes, or the default.

    Args:
        op: One of ``OPS``.
        x: [T, columns], the tall tensor that the op reads.
        chunk: See :func:`rank_chunk`.
        columns: Of the tall tensor that the op writes, if it does.
    """
    from lorafusion.kernels.config_files import ShapeClass

    sizes = (x.shape[0], x.shape[1], columns)
    tuned = tuned_configs(x.device)
    found = tuned.get(ShapeClass.of(op, dtype_class(x.dtype), sizes, chunk)) if tuned else None
    return found or default_config(op, x.dtype, architecture(x.device))


@functools.cache
def tuned_configs(device: torch.device) -> Mapping[Any, LaunchConfig]:
    """Class of shapes -> configuration, read once a process; see :mod:`config_files`."""
    if device.type == "cpu":
        return {}
    import triton

    from lorafusion.kernels.config_files import read_tuned

    return read_tuned(torch.cuda.get_device_name(device), triton.__version__).best


@dataclass(frozen=True)
class KernelExample:
    """One kernel as a launch compiles it: what ahead-of-time compiling needs."""

    kernel: Any
    signature: Mapping[str, str]
    """Argument -> Triton type, for all but the constants; every one is a multiple of 16."""
    constants: Mapping[str, Any]
    """Constants, and the strides of 1."""
    warps: int
    stages: int

    @classmethod
    def of(
        cls,
        kernel: Any,
        types: Mapping[str, str],
        constants: Mapping[str, Any],
        config: LaunchConfig,
    ) -> KernelExample:
        """From the types of more arguments than the kernel has."""
        signature = {name: types[name] for name in kernel.arg_names if name in types}
        return cls(kernel, signature, constants, config.warps, config.stages)


def examples(
    op: str, config: LaunchConfig, *, rank: int, dtype: torch.dtype, dropout: bool
) -> list[KernelExample]:
    """The kernels that one call of an op launches, the one with the work first. Imports triton.

    Args:
        op: One of ``OPS``, ``SHARED_OPS`` or ``PASSES``.
        config: As given to the op.
        rank: The largest rank of the microbatch: it decides the chunk of ranks.
        dtype: Of the base.
        dropout: Whether any job drops elements.
    """
    if op in SHARED_OPS:
        module = importlib.import_module("lorafusion.kernels.shared_input.examples")
        return module.examples(
            SHARED_OPS[op], config, chunk=rank_chunk(rank), dtype=dtype, dropout=dropout
        )
    module = importlib.import_module(f"lorafusion.kernels.{op}.triton")
    return module.examples(config, chunk=rank_chunk(rank), dtype=dtype, dropout=dropout)


def rank_chunk(rank: int) -> int:
    """Ranks that a program works on at a time: a power of two from 16, as the dots need, to 64."""
    return min(64, max(16, 1 << (rank - 1).bit_length()))


def pointer(dtype: torch.dtype) -> str:
    """Triton's type for the address of a tensor."""
    names = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
    return names[dtype]
