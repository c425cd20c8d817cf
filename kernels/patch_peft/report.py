"""What runs on our op and what falls back to PEFT's own forward, with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum


class Fallback(Enum):
    """Why a layer runs PEFT's own forward. docs/peft.md shows these texts."""

    LAYER = "the layer is not exactly `peft.tuners.lora.Linear`: embeddings, convolutions, \
quantised bases (bitsandbytes, GPTQ, AWQ), experts, other methods"
    REPLACED = "something has put a `forward` of its own on the layer: X-LoRA, accelerate"
    BASE = "the base layer is not exactly `nn.Linear` or `Conv1D`, or its weight is not a plain \
tensor"
    VARIANT = "a variant of LoRA: DoRA, aLoRA, BD-LoRA, MiCA and others"
    LORA_BIAS = "`lora_bias=True`"
    FACTORS = "A or B is not a plain `nn.Linear`, or lies on another device than the base"
    HOOKS = "the base layer, A, B or the dropout has hooks or a replaced `forward`, which our op \
would not call"
    TRAINED_BASE = "the base's weight or bias is trained: our op gives it no gradient"
    DROPOUT = "the dropout is not `nn.Dropout`, or drops everything"
    SCALING = "the scaling is not a number"
    DTYPE = "the base is not in bfloat16, float16, float32 or float64, or in float64 on a GPU"
    DEVICE = "the base is on neither a CPU nor a CUDA or ROCm GPU"
    TRITON = "the base is on a GPU and triton is not installed"
    SEVERAL = "several adapters are active at once and drop elements: PEFT draws a mask for each"
    SMALL = (
        "fewer than 32 rows, without gradients or dropout, as in decoding: our op's checks take \
longer than they save"
    )
    INPUT = "an input of another type, width or device than the base, or more arguments"
    CASTING = "`disable_input_dtype_casting` is on"
    COMPILED = "inside `torch.compile`, `torch.export` or `torch.jit.trace`"
    TRANSFORM = "inside a transform of `torch.func`"


@dataclass(frozen=True)
class Part:
    """One adapter on one layer.

    Attributes:
        layer: Full name in the model.
        adapter: PEFT's name.
        why: It falls back for this reason; None: it runs on our op.
    """

    layer: str
    adapter: str
    why: Fallback | None


@dataclass(frozen=True)
class PatchReport:
    """What :func:`patch_peft` found; ``print`` shows it as a table.

    Attributes:
        parts: Every adapter on every layer of the model.
        seen: Reason -> how many calls of a layer have fallen back for it since it was patched. Some
            reasons, such as the input's type, show in a forward alone.
    """

    parts: Sequence[Part]
    seen: Mapping[Fallback, int]

    @property
    def fused(self) -> list[Part]:
        """The parts that run on our op."""
        return [part for part in self.parts if part.why is None]

    @property
    def fallbacks(self) -> dict[Fallback, list[Part]]:
        """Reason -> the parts that fall back for it, in the order of :class:`Fallback`."""
        found = {why: [part for part in self.parts if part.why is why] for why in Fallback}
        return {why: parts for why, parts in found.items() if parts}

    def __str__(self) -> str:
        layers = len({part.layer for part in self.parts})
        lines = [
            f"{len(self.fused)} of {len(self.parts)} adapter parts on {layers} layers run on "
            "lorafusion's op; the others on PEFT's forward."
        ]
        for why, parts in self.fallbacks.items():
            first = f"{parts[0].layer} ({parts[0].adapter})"
            lines.append(f"{len(parts):6}  {why.name:<13} {why.value}; such as {first}")
        if self.seen:
            lines.append("Calls that have fallen back:")
            lines += [f"{n:6}  {why.name:<13} {why.value}" for why, n in self.seen.items()]
        return "\n".join(lines)
