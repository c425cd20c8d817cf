"""The sum of a job's gradients over the samples of its running step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from lorafusion.training.flat import Flat


class GradientSum:
    """Adds what backwards leave in ``.grad``, in the plan's order or in the samples' own.

    In the samples' order the sum has the same bits however the samples were packed; what comes
    before its turn is held. ``held_bytes_peak`` says how much that took at most.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], *, shared: bool = False) -> None:
        """Nothing is there yet.

        Args:
            parameters: The job's leaves; their ``.grad`` is taken after each backward.
            shared: Other replicas have samples of the step too.
        """
        self._parameters = parameters
        self.flat = Flat(parameters)
        """How :meth:`finish` lays the gradients out."""
        self._shared = shared
        self._filler: torch.Tensor | None = None
        self._spoilt = False
        self._each = sum(parameter.nbytes for parameter in parameters)
        self._sum: torch.Tensor | None = None
        self._order: dict[int, int] | None = None
        self._held: dict[int, torch.Tensor] = {}
        self._next = 0
        self.held_bytes_peak = 0

    @property
    def nbytes(self) -> int:
        """What is kept now: the sum, and what is held."""
        return self._each * (len(self._held) + (self._sum is not None))

    def begin(self, samples: Iterable[int] | None) -> None:
        """Start a step. ``samples``: the order to add in; None adds in the order of arrival."""
        self._order = None if samples is None else {s: i for i, s in enumerate(samples)}
        self._sum, self._next, self._spoilt = None, 0, False
        self._held.clear()
        self._filler = None

    def collect(self, sample: int | None = None) -> None:
        """Take the gradients of the backward that just ended (of ``sample`` alone, if ordered)."""
        gradient = self.flat.pack(
            [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        )
        self.forget()
        if self._order is None:
            self._add(gradient)
            return
        assert sample is not None
        self._held[self._order[sample]] = gradient
        self.held_bytes_peak = max(self.held_bytes_peak, self._each * len(self._held))
        while not self._shared and self._next in self._held:
            self._add(self._held.pop(self._next))
            self._next += 1

    def forget(self) -> None:
        """Drop what a backward that failed has left."""
        for parameter in self._parameters:
            parameter.grad = None

    def spoil(self) -> None:
        """Let the sum be NaN, on all replicas: what there is here is not the whole."""
        self.begin(self._order)
        self._spoilt = True

    def close(self) -> None:
        """All samples of the step that run here have been collected."""
        if self._order is None:
            lacks = self._sum is None
        else:
            lacks = self._next + len(self._held) < len(self._order)
        assert self._shared or self._spoilt or not lacks, "a step ended before all its samples"
        if lacks and self._filler is None:
            # What is added to -0.0 keeps every bit, unlike with 0.0 the sign of a zero.
            self._filler = self.flat.full(torch.nan if self._spoilt else -0.0)

    def finish(self, add_up: Callable[[torch.Tensor], None]) -> torch.Tensor:
        """The sum over the whole step, flat; to be called behind :meth:`close`.

        ``add_up`` puts the sum over all replicas into a tensor. It is called as often on each of
        them: once, or in the samples' order once for each.
        """
        if self._order is None:
            total = self._filler if self._sum is None else self._sum
            assert total is not None, "a step that was not closed"
            add_up(total)
            return total
        for index in range(self._next, len(self._order)):
            part = self._held.pop(index, None)
            if part is None:
                assert self._filler is not None, "a step that was not closed"
                part = self._filler.clone()
            add_up(part)
            self._add(part)
        assert self._sum is not None, "a step without samples"
        return self._sum

    def _add(self, gradient: torch.Tensor) -> None:
        if self._sum is None:
            self._sum = gradient
        else:
            self._sum += gradient
