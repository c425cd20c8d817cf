"""Which adapter methods exist. A method is one file: its config class and ``register_method``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import torch

    from lorafusion.kernels.layout import FusedForm


class AdapterConfig(BaseModel):
    """What all adapter configs share: frozen, and unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: str


class ModuleAdapter(Protocol):
    """One job's adapter on one linear of the base."""

    def parameters(self) -> dict[str, torch.Tensor]:
        """The trainable tensors by name, as PEFT names them (``lora_A``, ``lora_B``)."""
        ...

    def fused_form(self) -> FusedForm:
        """What the kernels need for the next step."""
        ...


class AdapterMethod(Protocol):
    """Builds the adapter of one linear from the method's config."""

    def __call__(
        self, config: AdapterConfig, weight: torch.Tensor, *, name: str, seed: int
    ) -> ModuleAdapter:
        """``weight`` is the base's [out, in]; ``name`` the module's full name in the base."""
        ...


@dataclass(frozen=True)
class Method:
    """A registered method: the config class that YAML fills, and what builds its modules."""

    config: type[AdapterConfig]
    build: AdapterMethod


METHODS: dict[str, Method] = {}


def register_method(name: str, config: type[AdapterConfig], build: AdapterMethod) -> None:
    """Add a method under the name that ``adapter.type`` gives it."""
    assert name not in METHODS, f"adapter method {name!r} is registered twice"
    METHODS[name] = Method(config, build)
