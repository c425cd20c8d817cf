"""PEFT's LoRA layer with our op in its forward. Imports peft: import it late."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from peft.tuners.lora import LoraModel
from peft.tuners.lora.layer import Linear
from torch import nn

from lorafusion.errors import KernelError
from lorafusion.kernels.checks import accumulation_dtype
from lorafusion.kernels.dropout import threshold
from lorafusion.kernels.layout import FusedForm, ModuleAdapters
from lorafusion.kernels.lora_linear import lora_linear
from lorafusion.kernels.patch_peft.reasons import (
    adapter_fallback,
    call_fallback,
    dropout_of,
    layer_fallback,
)
from lorafusion.kernels.patch_peft.report import Fallback
from lorafusion.kernels.patch_peft.rows import (
    check_batch,
    layout_of,
    rows_of,
    segments,
)

FEW = 32
"""Rows below which a forward without gradients is left to PEFT."""


class FusedLinear(Linear):
    """The layer as PEFT made it, but for its class: parameters, names and state stay."""

    in_rows = False
    """Set in an ``adapter_rows`` block: torch.compile cannot read what a context holds, and must
    compile anew where a block begins or ends."""
    had_rows = False
    """Whether the last forward outside of a backward had rows bound."""
    fallen_back: Counter[Fallback] | None = None
    """Calls that have fallen back, by reason."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As :meth:`peft.tuners.lora.layer.Linear.forward`."""
        if torch.compiler.is_compiling() and not self.in_rows:
            return super().forward(x, *args, **kwargs)
        return self._eager(x, *args, **kwargs)

    @torch.compiler.disable()
    def _eager(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._route(x, kwargs)
        names = kwargs.get("adapter_names")
        if self.disable_adapters or (self.merged and names is None):
            return super().forward(x, *args, **kwargs)  # the base alone
        self._check_forward_args(x, *args, **kwargs)
        used = self._used(names)
        if not used:
            return super().forward(x, *args, **kwargs)
        more = bool(args) or bool(kwargs.keys() - _KNOWN)
        why = self._fallback(x, names, used, extra=more)
        if why is not None:
            self.fallen_back = self.fallen_back or Counter()
            self.fallen_back[why] += 1
            return super().forward(x, *args, **kwargs)
        return self._fused(x, names, used)

    def _route(self, x: torch.Tensor, kwargs: dict[str, Any]) -> None:
        """Take the rows that are bound, as PEFT's own ``adapter_names``.

        Raises:
            KernelError: They do not fit, or a recomputation has lost them.
        """
        if self.disable_adapters:
            return
        rows = rows_of(self)
        if rows is not None:
            if kwargs.get("adapter_names") is not None:
                raise KernelError(
                    "adapter_rows: `adapter_names` was passed too; allowed: one of the two."
                )
            check_batch(x, rows)
            kwargs["adapter_names"] = list(rows.names)
        if torch._C._current_graph_task_id() == -1:
            if self.had_rows != (rows is not None):
                self.had_rows = rows is not None
        elif rows is None and self.had_rows:
            raise KernelError(
                "adapter_rows: a layer is recomputed in the backward without the rows it had in "
                "the forward. Run the backward inside the block too, or use transformers' "
                "gradient_checkpointing_enable(), which carries them along."
            )

    def _used(self, names: Any) -> list[str]:
        """The adapters on this layer that the call goes through."""
        wanted = self.active_adapters if names is None else dict.fromkeys(names)
        return [name for name in wanted if name in self.lora_A]

    def _fallback(
        self, x: torch.Tensor, names: Any, used: list[str], *, extra: bool
    ) -> Fallback | None:
        if self._small(x, used):
            return Fallback.SMALL
        why = layer_fallback(self) or call_fallback(self, x, extra)
        for name in used:
            why = why or adapter_fallback(self, name)
        summed = len(used) > 1 and names is None
        if why is None and summed and any(dropout_of(self.lora_dropout[name]) for name in used):
            return Fallback.SEVERAL
        return why

    def _small(self, x: torch.Tensor, used: list[str]) -> bool:
        # A call of the op costs some 0.2 ms in Python, and PEFT's forward of one row of a narrow
        # layer 0.1 ms. Not where elements are dropped: what is recomputed later with gradients
        # must have the same mask.
        return (
            not torch.is_grad_enabled()
            and x.shape[:-1].numel() < FEW
            and not any(dropout_of(self.lora_dropout[name]) for name in used)
        )

    def _fused(self, x: torch.Tensor, names: Any, used: list[str]) -> torch.Tensor:
        """All checks are done: one call of the op, a segment for each run of an adapter."""
        dtype, device = x.dtype, x.device
        cast = torch.is_autocast_enabled(device.type) and dtype != torch.float64
        if cast:
            dtype = torch.get_autocast_dtype(device.type)
        base: Any = self.base_layer
        weight = base.weight if isinstance(base, nn.Linear) else base.weight.T  # Conv1D: [in, out]
        bias = base.bias
        forms = {name: self._form(name, accumulation_dtype(dtype)) for name in used}
        parts = segments(x, names)
        by_slot = {slot: forms[n] for slot, (_, n) in enumerate(parts) if n in forms}
        if names is None:
            by_slot = {0: _joined(list(forms.values()))}
        drops = any(form.dropout for form in forms.values())
        adapters = ModuleAdapters(_draw_key() if drops else 0, by_slot)
        layout = layout_of(tuple(length for length, _ in parts), device)
        x = x if x.stride(-1) == 1 else x.contiguous()
        # Casting as autocast would; inside, the op says itself what is computed in what.
        with torch.autocast(device.type, enabled=False):
            bias = None if bias is None else bias.to(dtype)
            return lora_linear(x.to(dtype), weight.to(dtype), bias, layout, adapters)

    def _form(self, name: str, dtype: torch.dtype) -> FusedForm:
        a: Any = self.lora_A[name]
        b: Any = self.lora_B[name]
        p = dropout_of(self.lora_dropout[name])
        return FusedForm(
            a.weight.to(dtype), b.weight.to(dtype), float(self.scaling[name]), threshold(p)
        )


class FusedLoraModel(LoraModel):
    """PEFT's LoraModel that makes layers of ours where an adapter is added later."""

    def inject_adapter(self, *args: Any, **kwargs: Any) -> None:
        """As :meth:`peft.tuners.tuners_utils.BaseTuner.inject_adapter`."""
        super().inject_adapter(*args, **kwargs)
        fuse_layers(self)


def _joined(forms: list[FusedForm]) -> FusedForm:
    """The sum of adapters that drop nothing, as one: ``Σ s B A = [s₁B₁ s₂B₂ …] [A₁; A₂; …]``."""
    if len(forms) == 1:
        return forms[0]
    A = torch.cat([form.A for form in forms])
    B = torch.cat([form.scale * form.B for form in forms], dim=1)
    return FusedForm(A, B, 1.0)


def _draw_key() -> int:
    """What this call's dropout mask is a function of, from torch's generator of the CPU.

    So ``torch.manual_seed`` makes it reproducible, every call has another, and checkpointing, which
    puts the generator back for the recomputation, gives the same one again.
    """
    return int(torch.empty((), dtype=torch.int64, device="cpu").random_())


_KNOWN = {"adapter_names", "alora_offsets"}  # the second is for a variant, and ignored without it
_FUSED: dict[type, type] = {Linear: FusedLinear, LoraModel: FusedLoraModel}
_PLAIN = {fused: plain for plain, fused in _FUSED.items()}


def fuse_layers(model: nn.Module) -> None:
    """Give layers, and the LoraModel around them, our classes."""
    for module in model.modules():
        module.__class__ = _FUSED.get(type(module), type(module))


def restore_layers(model: nn.Module) -> None:
    """Undo :func:`fuse_layers`."""
    for module in model.modules():
        if type(module) in _PLAIN:
            module.__class__ = _PLAIN[type(module)]
            for name in ("in_rows", "had_rows", "fallen_back"):
                vars(module).pop(name, None)


def unfused_modules(model: nn.Module) -> bool:
    """Whether :func:`fuse_layers` has anything to do."""
    return any(type(module) in _FUSED for module in model.modules())
