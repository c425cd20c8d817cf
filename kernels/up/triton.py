"""The GPU's up: one GEMM, the LoRA product in its accumulator."""

from __future__ import annotations

import torch

from lorafusion.kernels.launch_configs import KernelExample, LaunchConfig, choose_config
from lorafusion.kernels.layout import AdapterLayout, ModuleAdapters
from lorafusion.kernels.triton_gemm import gemm_examples, lora_gemm
from lorafusion.kernels.triton_parts import on_device, pack_for


@on_device
def up(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None,
    s_TR: torch.Tensor,
    layout: AdapterLayout,
    adapters: ModuleAdapters,
    *,
    config: LaunchConfig | None = None,
) -> torch.Tensor:
    """See the op."""
    forms = pack_for(x_TK, layout, adapters)
    config = config or choose_config("up", x_TK, forms.chunk, weight_NK.shape[0])
    return lora_gemm(x_TK, weight_NK.T, bias_N, s_TR, layout, forms, config, backward=False)


def examples(
    config: LaunchConfig, *, chunk: int, dtype: torch.dtype, dropout: bool
) -> list[KernelExample]:
    """See :func:`lorafusion.kernels.launch_configs.examples`. The forward term has no mask."""
    return gemm_examples(config, chunk=chunk, dtype=dtype, dropout=False, backward=False)
