"""The kernels of the shared parts as a launch compiles them, for q, k and v: three projections."""

from __future__ import annotations

import torch

from lorafusion.kernels.launch_configs import KernelExample, LaunchConfig, pointer
from lorafusion.kernels.shared_input.table import MOST
from lorafusion.kernels.shared_input.triton_gemm import shared_grad_input_kernel, shared_up_kernel
from lorafusion.kernels.shared_input.triton_narrow import (
    shared_down_kernel,
    shared_grad_a_kernel,
)
from lorafusion.kernels.triton_sum import sum_example

_KEYS = dict.fromkeys(("p_prefix", "p_sample", "p_position"), "*i64")


def examples(
    op: str, config: LaunchConfig, *, chunk: int, dtype: torch.dtype, dropout: bool
) -> list[KernelExample]:
    """See :func:`lorafusion.kernels.launch_configs.examples`; ``op`` is the single one's name."""
    tiles = {
        name: size
        for name in ("BM", "BN", "BK")
        if (size := getattr(config, name)) and (name != "BN" or op in ("up", "grad_input"))
    }
    constants = {**tiles, "BR": min(chunk, config.BR)}
    signature = {"p_entries": "*i64", "p_tiles": "*i32", "K": "i32"}
    if op in ("down", "grad_a"):
        constants |= {"P": MOST, "DROPOUT": dropout}
        signature |= {"p_x": pointer(dtype), "stride_x": "i32", **_KEYS}
    else:
        constants |= {"LORA": True, "ALIGNED": True, "GROUP": config.group}
        signature |= {"n_tiles": "i32"}
    kernel = shared_down_kernel
    if op == "down":
        signature |= {"stride_a": "i32"}
    elif op == "grad_a":
        kernel = shared_grad_a_kernel
        constants |= {"SPAN": config.span}
        signature |= {"p_shares": "*i64", "G": "i32"}
    elif op == "up":
        kernel = shared_up_kernel
        constants |= {"BIAS": False}
        signature |= {"p_x": pointer(dtype), "p_blocks": "*i64", "n_blocks": "i32"}
        signature |= {"stride_x": "i32"}
    else:
        kernel = shared_grad_input_kernel
        constants |= {"DROPOUT": dropout}
        signature |= {"p_dx": pointer(dtype), "n_entries": "i32", **_KEYS}
    main = KernelExample(kernel, signature, constants, config.warps, config.stages)
    return [main, sum_example()] if op == "grad_a" else [main]
