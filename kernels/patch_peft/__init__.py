"""PEFT's LoRA layers on our op: :func:`patch_peft`. Torch and peft are imported in its call."""

from lorafusion.kernels.patch_peft.api import (
    adapter_rows,
    patch_peft,
    patch_report,
    patched,
    unpatch_peft,
)
from lorafusion.kernels.patch_peft.report import Fallback, PatchReport

__all__ = [
    "Fallback",
    "PatchReport",
    "adapter_rows",
    "patch_peft",
    "patch_report",
    "patched",
    "unpatch_peft",
]
