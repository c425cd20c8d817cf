"""A base whose weights are cut over ranks: a unit of them at a time is whole, on all ranks at once.

A unit is the embedding, a layer, or the head. Making one whole is a collective, so all ranks have
to go through the same units in the same order. They do so in passes: within one, a rank that has no
use for a unit makes it whole all the same. Outside of passes all ranks run the same code.

Autograd would keep a unit alive from the forward to the backward, by the views of its weights that
it saves. It is given notes of them instead, which are read when the unit is whole again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

PassKind = Literal["forward", "backward"]
Gathered = Callable[[Sequence[nn.Parameter]], AbstractContextManager[None]]


class Unit(NamedTuple):
    """Weights that are whole at the same time.

    Attributes:
        name: Full name of the module that has them.
        modules: Those whose forward reads them.
        parameters: The weights that are cut over the ranks.
        in_backward: Whether a backward reads them again.
    """

    name: str
    modules: tuple[nn.Module, ...]
    parameters: tuple[nn.Parameter, ...]
    in_backward: bool


class _View(NamedTuple):
    """A view of a weight, for the time when it is not there."""

    unit: int
    parameter: nn.Parameter
    shape: torch.Size
    strides: tuple[int, ...]
    offset: Any


class ShardedWeights:
    """The units of a base, in the order of its forward, the head last."""

    def __init__(self, units: Sequence[Unit], gathered: Gathered) -> None:
        """Modules of the units make them whole before their forward.

        Args:
            units: All that is cut.
            gathered: A block in which these weights are whole; a collective of all ranks.
        """
        self._units = units
        self._gathered = gathered
        self._whole: int | None = None
        self._block: AbstractContextManager[None] | None = None
        self._parameters: dict[int, nn.Parameter] = {}  # of the whole unit, by address
        self._ahead: deque[int] | None = None  # in a pass: the units that are still to come
        self._broken = False
        for number, unit in enumerate(units):
            for module in unit.modules:
                module.register_forward_pre_hook(self._opener(number))

    def open(self, name: str) -> None:
        """Make the unit whole that has the module with this full name, if one does."""
        for number, unit in enumerate(self._units):
            if name == unit.name or name.startswith(f"{unit.name}."):
                self._open(number)

    @contextmanager
    def walk(self, kind: PassKind) -> Generator[None]:
        """A pass: at its end this rank has made whole all that the others have.

        Raises:
            LostRankError: Another rank is gone. Nothing can be made whole any more.
        """
        assert self._ahead is None, "a pass within a pass"
        order = [n for n, unit in enumerate(self._units) if kind == "forward" or unit.in_backward]
        self._close()
        self._ahead = deque(order if kind == "forward" else reversed(order))
        try:
            if kind == "forward":
                with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
                    yield
            else:
                yield
        finally:
            try:
                while self._ahead and not self._broken:
                    self._make_whole(self._ahead.popleft())
            finally:
                self._ahead = None
                self._close()

    def _opener(self, number: int) -> Callable[..., None]:
        def open_before(*_: object) -> None:
            self._open(number)

        return open_before

    def _open(self, number: int) -> None:
        if number == self._whole:
            return
        if self._ahead is not None:
            assert number in self._ahead, f"{self._units[number].name} is behind in this pass"
            while (following := self._ahead.popleft()) != number:
                self._make_whole(following)
        self._make_whole(number)

    def _make_whole(self, number: int) -> None:
        self._close()
        block = self._gathered(self._units[number].parameters)
        try:
            block.__enter__()
        except BaseException:
            self._broken = True
            raise
        self._block, self._whole = block, number
        self._parameters = {
            parameter.untyped_storage().data_ptr(): parameter
            for parameter in self._units[number].parameters
        }

    def _close(self) -> None:
        if self._block is not None:
            self._block.__exit__(None, None, None)
        self._block = self._whole = None
        self._parameters = {}

    def _pack(self, tensor: torch.Tensor) -> Any:
        parameter = self._parameters.get(tensor.untyped_storage().data_ptr())
        if parameter is None or self._whole is None:
            return tensor, tensor._version
        assert tensor.dtype == parameter.dtype, "a weight was saved as another type"
        layout = tensor.shape, tensor.stride(), tensor.storage_offset()
        return _View(self._whole, parameter, *layout)

    def _unpack(self, packed: Any) -> torch.Tensor:
        if isinstance(packed, _View):
            self._open(packed.unit)
            whole = packed.parameter.detach()
            return whole.as_strided(packed.shape, packed.strides, packed.offset)
        tensor, version = packed
        # torch checks this by itself where there are no hooks.
        assert tensor._version == version, "what the backward needs was written to"
        return tensor


def is_cut(weight: torch.Tensor) -> bool:
    """Whether it is worth cutting: a matrix.

    Norms and biases are a thousandth of a base, and need no collective where they stay whole.
    """
    return weight.ndim > 1
