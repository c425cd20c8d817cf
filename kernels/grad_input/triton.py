"""The GPU's grad_input: one GEMM, the masked LoRA product in its accumulator."""

from __future__ import annotations

import torch

from lorafusion.kernels.launch_configs import KernelExample, LaunchConfig, choose_config
from lorafusion.kernels.layout import AdapterLayout, ModuleAdapters
from lorafusion.kernels.triton_gemm import gemm_examples, lora_gemm
from lorafusion.kernels.triton_parts import on_device, pack_for


@on_device
def grad_input(
    dy_TN: torch.Tensor,
    weight_NK: torch.Tensor,
    ds_TR: torch.Tensor,
    layout: AdapterLayout,
    adapters: ModuleAdapters,
    *,
    config: LaunchConfig | None = None,
) -> torch.Tensor:
    """See the op."""
    forms = pack_for(dy_TN, layout, adapters)
    config = config or choose_config("grad_input", dy_TN, forms.chunk, weight_NK.shape[1])
    return lora_gemm(dy_TN, weight_NK, None, ds_TR, layout, forms, config, backward=True)


def examples(
    config: LaunchConfig, *, chunk: int, dtype: torch.dtype, dropout: bool
) -> list[KernelExample]:
    """See :func:`lorafusion.kernels.launch_configs.examples`."""
    return gemm_examples(config, chunk=chunk, dtype=dtype, dropout=dropout, backward=True)
