"""Whether our op can stand in for a layer of PEFT, as the layer is now.

Asked in every forward: adapters come and go, weights are moved, hooks are set.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorafusion.kernels.backend import choose_backend
from lorafusion.kernels.checks import BASE_DTYPES
from lorafusion.kernels.dropout import LEVELS
from lorafusion.kernels.patch_peft.report import Fallback

_PLAIN = (nn.Parameter, torch.Tensor)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def layer_fallback(layer: Any) -> Fallback | None:
    """Why no adapter of the layer runs on our op."""
    base = layer.base_layer
    if "forward" in vars(layer):
        return Fallback.REPLACED
    if type(base) not in (nn.Linear, Conv1D):
        return Fallback.BASE
    if _hooked(base):
        return Fallback.HOOKS
    weight, bias = base.weight, base.bias
    if type(weight) not in _PLAIN or weight.ndim != 2:  # ZeRO-3 leaves nothing of a weight
        return Fallback.BASE
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return Fallback.TRAINED_BASE
    return _place_fallback(weight)


def _place_fallback(weight: torch.Tensor) -> Fallback | None:
    if weight.device.type not in ("cpu", "cuda"):
        return Fallback.DEVICE
    on_gpu = weight.device.type == "cuda"
    if weight.dtype not in BASE_DTYPES or (on_gpu and weight.dtype == torch.float64):
        return Fallback.DTYPE
    if on_gpu and choose_backend(weight.device) == "triton" and not _has_triton():
        return Fallback.TRITON
    return None


def adapter_fallback(layer: Any, name: str) -> Fallback | None:
    """Why one adapter of the layer does not run on our op."""
    if name in layer.lora_variant:
        return Fallback.VARIANT
    a, b, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    device = layer.base_layer.weight.device
    for factor in (a, b):
        if type(factor) is not nn.Linear or type(factor.weight) not in _PLAIN:
            return Fallback.FACTORS
        if factor.weight.ndim != 2 or factor.weight.device != device:
            return Fallback.FACTORS
    if b.bias is not None or a.bias is not None:
        return Fallback.LORA_BIAS
    if any(_hooked(module) for module in (a, b, dropout)):
        return Fallback.HOOKS
    if type(dropout) not in (nn.Identity, nn.Dropout) or dropout_of(dropout) > 1 - 1 / LEVELS:
        return Fallback.DROPOUT
    return None if isinstance(layer.scaling[name], int | float) else Fallback.SCALING


def call_fallback(layer: Any, x: torch.Tensor, extra: bool) -> Fallback | None:
    """Why one call does not run on our op: what only a forward can tell."""
    if extra or type(x) not in _PLAIN or not x.is_floating_point() or x.ndim == 0:
        return Fallback.INPUT
    weight, bias = layer.base_layer.weight, layer.base_layer.bias
    if x.device != weight.device or x.shape[-1] != layer.in_features:
        return Fallback.INPUT
    types = {x.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype}
    # Autocast leaves float64 alone, and brings the others together.
    if len(types) > 1 and (torch.float64 in types or not torch.is_autocast_enabled(x.device.type)):
        return Fallback.INPUT
    if not getattr(layer, "cast_input_dtype_enabled", True):
        return Fallback.CASTING
    if torch._C._is_tracing():
        return Fallback.COMPILED
    if torch._C._are_functorch_transforms_active():
        return Fallback.TRANSFORM
    return None


def dropout_of(dropout: Any) -> float:
    """The probability that is in effect."""
    return dropout.p if dropout.training and type(dropout) is nn.Dropout else 0.0


def _hooked(module: nn.Module) -> bool:
    state = vars(module)
    return "forward" in state or any(state.get(hooks) for hooks in _HOOKS)


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
