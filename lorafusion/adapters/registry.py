"""Which adapter methods exist. A method is one file: its config class and ``register_method``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pydantic import BaseModel

if TYPE_CHECKING:
    import torch

    from lorafusion.kernels.layout import FusedForm


class AdapterConfig(
    BaseModel, extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
):
    """What all adapter configs share: frozen, and unknown fields are refused."""

    type: str


ConfigT = TypeVar("ConfigT", bound=AdapterConfig)
ConfigIn = TypeVar("ConfigIn", bound=AdapterConfig, contravariant=True)


class ModuleAdapter(Protocol):
    """One job's adapter on one linear of the base."""

    def parameters(self) -> dict[str, torch.Tensor]:
        """The trainable tensors by name, as PEFT names them (``lora_A``, ``lora_B``)."""
        ...

    def fused_form(self) -> FusedForm:
        """What the kernels need for the next step."""
        ...


class AdapterMethod(Protocol[ConfigIn]):
    """Builds the adapter of one linear from the method's config."""

    def __call__(
        self, config: ConfigIn, weight: torch.Tensor, *, name: str, seed: int
    ) -> ModuleAdapter:
        """``weight`` is the base's [out, in]; ``name`` the module's full name in the base."""
        ...


@dataclass(frozen=True)
class Method:
    """A registered method: the config class that YAML fills, and what builds its modules."""

    config: type[AdapterConfig]
    build: AdapterMethod[Any]


METHODS: dict[str, Method] = {}


def register_method(name: str, config: type[ConfigT], build: AdapterMethod[ConfigT]) -> None:
    """Add a method under the name that ``adapter.type`` gives it."""
    assert name not in METHODS, f"adapter method {name!r} is registered twice"
    METHODS[name] = Method(config, build)
