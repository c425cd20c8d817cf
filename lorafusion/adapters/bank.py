"""The adapters that are resident beside the base, each in a slot of its own.

Adapters of different jobs are separate tensors: an optimizer's update in place of one job must not
touch what another job's backward still needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lorafusion.adapters.adapted import AdaptedLinear, weight_NK
from lorafusion.adapters.registry import METHODS, AdapterConfig, ModuleAdapter
from lorafusion.adapters.targets import match_targets
from lorafusion.errors import AdapterError
from lorafusion.kernels.hashing import module_key
from lorafusion.kernels.layout import FusedForm, ModuleAdapters
from lorafusion.module_names import ModuleNames, module_names


@dataclass(frozen=True)
class ResidentAdapter:
    """One job's adapter: its slot, and its part on each adapted linear by full module name."""

    slot: int
    config: AdapterConfig
    modules: Mapping[str, ModuleAdapter]

    def parameters(self) -> dict[str, torch.Tensor]:
        """``<module>.lora_A`` and so on -> tensor, in the base's order of modules."""
        return {
            f"{name}.{key}": tensor
            for name, module in self.modules.items()
            for key, tensor in module.parameters().items()
        }

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Overwrite the parameters in place.

        Raises:
            AdapterError: The names or shapes are not this adapter's.
        """
        parameters = self.parameters()
        wrong = sorted(parameters.keys() ^ tensors.keys()) or [
            name for name, tensor in tensors.items() if tensor.shape != parameters[name].shape
        ]
        if wrong:
            raise AdapterError(
                f"{len(wrong)} tensors do not fit the adapter, such as {wrong[0]}; allowed: the "
                "names and shapes of the same settings on the same base."
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[name])


class AdapterBank:
    """Slots over one base. Linears are wrapped when the first adapter wants them."""

    def __init__(
        self,
        model: nn.Module,
        names: ModuleNames | None = None,
        shared_inputs: Iterable[Sequence[str]] = (),
    ) -> None:
        """``model`` keeps its weights; targeted linears get a wrapper around them.

        Args:
            model: The base, or the part of it that is here.
            names: Those of the whole base, where ``model`` is a part of it.
            shared_inputs: Full names of linears that are given the same tensor, in the order of
                their calls: they run together. Others run one by one.
        """
        self._model = model
        self._names = names or module_names(model)
        here = dict(model.named_modules())
        self._linears = {name: here[name] for name in self._names.linears if name in here}
        self._residents: dict[int, ResidentAdapter] = {}
        self._sharing = {name: tuple(names) for names in shared_inputs for name in names}
        self._adapted: dict[str, AdaptedLinear] = {}

    @property
    def linears(self) -> tuple[str, ...]:
        """Full names of the linears that may be adapted, and are here."""
        return tuple(self._linears)

    @property
    def linears_and_head(self) -> tuple[str, ...]:
        """Full names of all linears of the base, which an exported list of targets tells apart."""
        return (*self._names.linears, *([self._names.head] if self._names.head else []))

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether the base stores weights as [in, out], which PEFT's folders have to say."""
        return any(not isinstance(linear, nn.Linear) for linear in self._linears.values())

    @property
    def names(self) -> ModuleNames:
        """The base's modules, as they were before any was wrapped."""
        return self._names

    def match(self, target_modules: str | tuple[str, ...]) -> tuple[str, ...]:
        """Full names that ``target_modules`` selects, see :func:`match_targets`."""
        return match_targets(self._names, target_modules)

    def add(self, config: AdapterConfig, targets: Iterable[str], *, seed: int) -> ResidentAdapter:
        """Build an adapter on ``targets`` (full names) in the lowest free slot."""
        slot = next(slot for slot in range(len(self._residents) + 1) if slot not in self._residents)
        build = METHODS[config.type].build
        modules = {
            name: build(config, weight_NK(self._linears[name]), name=name, seed=seed)
            for name in targets
        }
        for name in modules:
            self._wrap(name)
        self._residents[slot] = ResidentAdapter(slot, config, modules)
        return self._residents[slot]

    def remove(self, slot: int) -> None:
        """Free a slot. The wrappers stay: without an adapter they only call the base."""
        del self._residents[slot]

    def modules(self, slots: Iterable[int]) -> dict[str, ModuleAdapters]:
        """What the kernels need of the adapters in ``slots``, by module, as they are now."""
        forms: dict[str, dict[int, FusedForm]] = {}
        for slot in slots:
            for name, module in self._residents[slot].modules.items():
                forms.setdefault(name, {})[slot] = module.fused_form()
        return {name: ModuleAdapters(module_key(name), by) for name, by in forms.items()}

    def _wrap(self, name: str) -> None:
        if isinstance(self._model.get_submodule(name), AdaptedLinear):
            return
        self._adapted[name] = AdaptedLinear(self._linears[name], name)
        self._model.set_submodule(name, self._adapted[name])
        names = self._sharing.get(name, ())
        sharing = [self._adapted[other] for other in names if other in self._adapted]
        for one in sharing:
            one.sharing = sharing
