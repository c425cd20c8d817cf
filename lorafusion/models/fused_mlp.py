"""Which modules are gated MLPs: down(act(gate(x)) · up(x)), with two linears below or one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from typing import Any, NamedTuple

import torch
from torch import nn

from lorafusion.kernels.gated_product import ACTIVATIONS, gated_halves, gated_product, reference
from lorafusion.models.fused_checks import equal, takes_one, tried

# Of rows: a large one shows a limit on what goes into the product.
_MAGNITUDES = (0.3, 1.0, 30.0)


class Wiring(NamedTuple):
    """Names of the linears, by what they do."""

    gate: str
    up: str
    """As ``gate`` where one linear gives both, side by side."""
    down: str
    gate_first: bool
    """Where one gives both: which half is the gate."""

    def run(self, mlp: Any, x: torch.Tensor, activation: str) -> torch.Tensor:
        """The MLP, with its product in one pass."""
        gate = getattr(mlp, self.gate)(x)
        if self.gate == self.up:
            product = gated_halves(gate, activation, gate_first=self.gate_first)
        else:
            product = gated_product(gate, getattr(mlp, self.up)(x), activation)
        return getattr(mlp, self.down)(product)

    def run_plainly(self, mlp: Any, x: torch.Tensor, activation: str) -> torch.Tensor:
        """The MLP in torch's operations: what a gated one gives, bit for bit."""
        gate, up = getattr(mlp, self.gate)(x), getattr(mlp, self.up)(x)
        if self.gate == self.up:
            halves = gate.chunk(2, dim=-1)
            gate, up = halves if self.gate_first else halves[::-1]
        return getattr(mlp, self.down)(reference.gated_product(gate, up, activation))


def find_mlp(module: Any, linears: Sequence[str]) -> Callable[..., Any] | None:
    """The forward that replaces a gated MLP's own; None if ``module`` is none.

    Args:
        module: Any module.
        linears: Names of its children that are linears of the base.
    """
    if len(linears) not in (2, 3) or not takes_one(type(module).forward):
        return None
    activation = _activation_of(module, linears)
    wirings = list(_wirings({name: getattr(module, name) for name in linears}))
    if activation is None or not wirings:
        return None
    x = _rows(getattr(module, wirings[0].gate))
    theirs = type(module).forward
    found = tried(theirs, module, x)
    fitting = [w for w in wirings if equal(found, w.run_plainly(module, x, activation))]
    if len(fitting) != 1:  # more than one: weights of zero
        return None
    (wiring,) = fitting

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != 1:
            return theirs(self, *args, **kwargs)
        return wiring.run(self, args[0], activation)

    return forward


def _wirings(linears: dict[str, Any]) -> Iterator[Wiring]:
    """Those that the shapes allow."""
    if not all(isinstance(linear, nn.Linear) for linear in linears.values()):
        return
    for names in permutations(linears):
        gate, *_, down = (linears[name] for name in names)
        if down.out_features != gate.in_features:
            continue
        if len(names) == 3 and _shape(gate) == _shape(linears[names[1]]) == _shape(down)[::-1]:
            yield Wiring(*names, True)
        if len(names) == 2 and gate.out_features == 2 * down.in_features:
            yield from (Wiring(names[0], names[0], names[1], first) for first in (True, False))


def _shape(linear: Any) -> tuple[int, int]:
    return linear.in_features, linear.out_features


def _activation_of(module: nn.Module, linears: Sequence[str]) -> str | None:
    """The name of the one child beside the linears, by what it does."""
    others = [child for name, child in module.named_children() if name not in linears]
    if len(others) != 1 or list(others[0].parameters()):
        return None
    weight = next(module.parameters())
    grid = torch.linspace(-12, 12, 97, device=weight.device).to(weight.dtype)
    found = tried(others[0], grid)  # of no activation, such as a rotary embedding, nothing
    return next((name for name, run in ACTIVATIONS.items() if equal(found, run(grid))), None)


def _rows(linear: nn.Linear) -> torch.Tensor:
    rows = torch.randn(
        1, len(_MAGNITUDES), linear.in_features, generator=torch.Generator().manual_seed(0)
    )
    weight = linear.weight
    return (rows * torch.tensor(_MAGNITUDES)[:, None]).to(weight.device, weight.dtype)
