"""The sum of a job's gradients over the samples of its running step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch


class GradientSum:
    """Adds what backwards leave in ``.grad``, in the plan's order or in the samples' own.

    In the samples' order the sum has the same bits however the samples were packed; what comes
    before its turn is held. ``held_bytes_peak`` says how much that took at most.
    """

    def __init__(self, parameters: Sequence[torch.Tensor]) -> None:
        """``parameters`` are the job's leaves; their ``.grad`` is taken after each backward."""
        self._parameters = parameters
        self._each = sum(parameter.nbytes for parameter in parameters)
        self._sum: list[torch.Tensor] | None = None
        self._order: dict[int, int] | None = None
        self._held: dict[int, list[torch.Tensor]] = {}
        self._next = 0
        self.held_bytes_peak = 0

    @property
    def nbytes(self) -> int:
        """What is kept now: the sum, and what is held."""
        return self._each * (len(self._held) + (self._sum is not None))

    def begin(self, samples: Iterable[int] | None) -> None:
        """Start a step. ``samples``: the order to add in; None adds in the order of arrival."""
        self._order = None if samples is None else {s: i for i, s in enumerate(samples)}
        self._sum, self._next = None, 0
        self._held.clear()

    def collect(self, sample: int | None = None) -> None:
        """Take the gradients of the backward that just ended (of ``sample`` alone, if ordered)."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        self.forget()
        if self._order is None:
            self._add(gradients)
            return
        assert sample is not None
        self._held[self._order[sample]] = gradients
        self.held_bytes_peak = max(self.held_bytes_peak, self._each * len(self._held))
        while self._next in self._held:
            self._add(self._held.pop(self._next))
            self._next += 1

    def forget(self) -> None:
        """Drop what a backward that failed has left."""
        for parameter in self._parameters:
            parameter.grad = None

    def finish(self) -> list[torch.Tensor]:
        """The sum over the whole step, a tensor per parameter."""
        assert self._sum is not None and not self._held, "a step ended before all its samples"
        return self._sum

    def _add(self, gradients: list[torch.Tensor]) -> None:
        if self._sum is None:
            self._sum = gradients
            return
        for total, gradient in zip(self._sum, gradients, strict=True):
            total += gradient
