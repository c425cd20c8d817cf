"""Which linears of a base are given the same tensor: seen in its forward, not known by their names.

q, k and v are, and gate and up, in most families. What is seen has to be the same at every call, or
it does not count.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Names = tuple[str, ...]


class _Watch:
    """Notes runs of calls with the same tensor, of linears of one parent."""

    def __init__(self) -> None:
        self._tensors: dict[str, torch.Tensor] = {}
        self._open: dict[str, list[str]] = {}
        self._runs: dict[str, set[Names]] = {}

    def called(self, name: str, x: torch.Tensor | None) -> None:
        parent = name.rpartition(".")[0]
        # Held, so that no later tensor lies at its address, and `is` says which one it is.
        if x is None or self._tensors.get(parent) is not x or name in self._open[parent]:
            self._close(parent)
            self._open[parent] = []
            if x is not None:
                self._tensors[parent] = x
        self._open[parent].append(name)

    def close(self) -> None:
        for parent in list(self._open):
            self._close(parent)

    def groups(self) -> list[Names]:
        """Of two linears or more, each only ever called in this run."""
        seen = {run for runs in self._runs.values() for run in runs}
        return [
            run for run in seen if len(run) > 1 and all(self._runs[name] == {run} for name in run)
        ]

    def _close(self, parent: str) -> None:
        self._tensors.pop(parent, None)
        run = tuple(self._open.pop(parent, ()))
        for name in run:
            self._runs.setdefault(name, set()).add(run)


@contextmanager
def watch_inputs(model: nn.Module, linears: Iterable[str]) -> Generator[list[Names]]:
    """Find them in the forwards inside the block; the list is filled at its end.

    Args:
        model: The base, before any linear is wrapped.
        linears: Full names of linears. Those that are not here are passed over.

    Yields:
        Full names of the linears of each shared input, in the order of their calls. They have one
        parent: an attention, an MLP.
    """
    watch, found = _Watch(), list[Names]()
    modules = dict(model.named_modules())
    hooks = [
        modules[name].register_forward_pre_hook(_note(watch, name))
        for name in linears
        if name in modules
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    watch.close()
    order = {name: number for number, name in enumerate(modules)}
    found += sorted(watch.groups(), key=lambda run: order[run[0]])


def _note(watch: _Watch, name: str) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
        watch.called(name, args[0] if args else None)

    return hook
