"""LoRA: ``Y = X Wᵀ + s · (D(X) Aᵀ) Bᵀ`` with s = alpha / r, or alpha / sqrt(r) with rsLoRA.

Sources: Hu et al. 2021, arXiv:2106.09685; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732.
A is [r, in] and B is [out, r], as PEFT stores them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from lorafusion.adapters.patterns import why_endless
from lorafusion.adapters.registry import AdapterConfig, register_method
from lorafusion.files import expand_path

if TYPE_CHECKING:
    import torch

    from lorafusion.kernels.layout import FusedForm


Value = TypeVar("Value", int, float)
Default = TypeVar("Default", int, float, None)


def _folder(text: str) -> str:
    if "\0" in text:
        raise PydanticCustomError("null_character", "A path cannot hold the null character")
    return expand_path(text)


def _keys_are_patterns(pattern: Mapping[str, Value]) -> Mapping[str, Value]:
    for key in pattern:
        try:
            re.compile(_whole(key))
        except (re.error, OverflowError, RecursionError) as error:
            raise PydanticCustomError(
                "pattern",
                "The key {key} is no regular expression ({reason})",
                {"key": repr(key), "reason": str(error)},
            ) from error
        endless = why_endless(key)
        if endless is not None:
            raise PydanticCustomError(
                "endless_pattern",
                "The key {key} may take for ever to match: {reason}",
                {"key": repr(key), "reason": endless},
            )
    return pattern


class LoraConfig(AdapterConfig, frozen=True):
    """Settings of one LoRA adapter, with PEFT's names."""

    type: Literal["lora"] = "lora"
    """The adapter method."""
    r: Annotated[int, Field(ge=1)] = 8
    """Rank of the two factors."""
    lora_alpha: Annotated[float, Field(gt=0)] = 16
    """The product is scaled by alpha / r (alpha / sqrt(r) with ``use_rslora``)."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Chance that an input element of the adapter is dropped."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """As PEFT reads it: ``all-linear``, one regex (matched whole), or a list of name suffixes."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) instead of alpha / r."""
    rank_pattern: Annotated[
        Mapping[str, Annotated[int, Field(ge=1)]], AfterValidator(_keys_are_patterns)
    ] = {}
    """Ranks of single modules, instead of ``r``: the end of a name after a dot, or a regex for it,
    to a rank. The first that fits counts."""
    alpha_pattern: Annotated[
        Mapping[str, Annotated[float, Field(gt=0)]], AfterValidator(_keys_are_patterns)
    ] = {}
    """Alphas of single modules, instead of ``lora_alpha``, found as in ``rank_pattern``."""
    init_from: Annotated[str, Field(min_length=1), AfterValidator(_folder)] | None = None
    """A PEFT folder to start from. It says ``r``, ``lora_alpha``, ``rank_pattern``,
    ``alpha_pattern``, ``use_rslora`` and ``target_modules``, and ``lora_dropout`` unless that is
    given here. null: A is random, B zero."""

    @property
    def scale(self) -> float:
        """The factor s of the adapter's product, where no pattern says otherwise."""
        return self._scale(self.lora_alpha, self.r)

    def rank_of(self, name: str) -> int:
        """The rank on the module with this full name."""
        return first_match(self.rank_pattern, name, self.r)

    def alpha_of(self, name: str) -> float:
        """Alpha on the module with this full name."""
        return first_match(self.alpha_pattern, name, self.lora_alpha)

    def scale_of(self, name: str) -> float:
        """The factor s on the module with this full name."""
        return self._scale(self.alpha_of(name), self.rank_of(name))

    def unused_keys(self, modules: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Keys that fit none of the adapted ``modules``, each with its pattern's field."""
        names = list(modules)
        for field in ("rank_pattern", "alpha_pattern"):
            for key in getattr(self, field):
                if not any(re.match(_whole(key), name) for name in names):
                    yield field, key

    def _scale(self, alpha: float, rank: int) -> float:
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _whole(key: str) -> str:
    # PEFT's rule (peft.utils.other.get_pattern_key): all of the name, or what follows a dot in it.
    return rf"(.*\.)?({key})$"


def first_match(pattern: Mapping[str, Value], name: str, default: Default) -> Value | Default:
    """The value of the first key that fits a module's full name."""
    found = (value for key, value in pattern.items() if re.match(_whole(key), name))
    return next(found, default)


class LoraModule:
    """A and B of one job on one linear, float32 (float64 on a float64 base)."""

    def __init__(self, config: LoraConfig, weight: torch.Tensor, *, name: str, seed: int) -> None:
        """B is zero, so the base's output is unchanged at first; A is uniform as in PEFT.

        A depends on (seed, module name) alone: torch's Kaiming-uniform with a = sqrt(5) is
        U(-1/sqrt(in), 1/sqrt(in)). It is drawn in float32 for every dtype of the base.
        """
        import torch

        from lorafusion.kernels.dropout import threshold
        from lorafusion.kernels.hashing import hash64, module_key

        rows, columns = weight.shape
        dtype = torch.promote_types(weight.dtype, torch.float32)
        generator = torch.Generator("cpu").manual_seed(hash64(seed, module_key(name)) >> 1)
        bound = 1 / math.sqrt(columns)
        rank = config.rank_of(name)
        # A caller's default dtype and device must not change the numbers that are drawn.
        a = torch.empty(rank, columns, dtype=torch.float32, device="cpu")
        a.uniform_(-bound, bound, generator=generator)
        self.lora_A = a.to(weight.device, dtype).requires_grad_()
        self.lora_B = weight.new_zeros(rows, rank, dtype=dtype).requires_grad_()
        self._scale = config.scale_of(name)
        self._dropout = threshold(config.lora_dropout)

    def parameters(self) -> dict[str, torch.Tensor]:
        """The two factors, by PEFT's names."""
        return {"lora_A": self.lora_A, "lora_B": self.lora_B}

    def fused_form(self) -> FusedForm:
        """The factors themselves: LoRA has nothing to compute first."""
        from lorafusion.kernels.layout import FusedForm

        return FusedForm(self.lora_A, self.lora_B, self._scale, self._dropout)


register_method("lora", LoraConfig, LoraModule)
