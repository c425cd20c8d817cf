"""Cut a model's layers into pipeline stages so that the slowest takes as little time as can be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from lorafusion.errors import PlanError

__all__ = ["cut_layers"]

# Relative differences that are rounding: of times, and of sums of their squares.
_SAME, _TIE = 1e-9, 1e-12


def cut_layers(
    seconds: Sequence[float], stages: int, *, first: float = 0.0, last: float = 0.0
) -> tuple[range, ...]:
    """The best contiguous cut, exactly, by dynamic programming in O(stages · layers²).

    Of the cuts with the least time of the slowest stage, the one with the least sum of squared
    times; of equals the one with the fewest layers in the early stages, which hold the activations
    of the most microbatches at once.

    Args:
        seconds: What each layer takes, forward and backward.
        stages: How many stages, each of at least one layer.
        first: What the first stage takes on top (embedding).
        last: What the last stage takes on top (final norm, head and loss).

    Returns:
        The layers of each stage.

    Raises:
        PlanError: More stages than layers, fewer than one, or a time that is not finite or below 0.
    """
    layers = len(seconds)
    if not 1 <= stages <= layers:
        raise PlanError(
            f"{stages} stages for {layers} layers; allowed: 1 to {layers}, since each stage has at "
            "least one layer."
        )
    named = [(f"layer {index}", value) for index, value in enumerate(seconds)]
    for name, value in [*named, ("the embedding", first), ("the head", last)]:
        if not 0 <= value < math.inf:
            raise PlanError(
                f"cutting into stages: {name} takes {value} s; allowed: a finite time of at least "
                "0. Mend the cost model."
            )
    sums = [0.0]
    for value in seconds:
        sums.append(sums[-1] + value)

    def span(start: int, stop: int) -> float:
        ends = (first if start == 0 else 0.0) + (last if stop == layers else 0.0)
        return sums[stop] - sums[start] + ends

    slowest, _ = _partition(layers, stages, lambda before, i, j: max(before, span(i, j)))
    most = slowest * (1 + _SAME)

    def squares(before: float, start: int, stop: int) -> float:
        time = span(start, stop)
        return before + time * time if time <= most else math.inf

    return _partition(layers, stages, squares)[1]


_Join = Callable[[float, int, int], float]
"""The cost of some stages (from 0 for none) and one more of layers [start, stop)."""


def _partition(layers: int, stages: int, join: _Join) -> tuple[float, tuple[range, ...]]:
    """The least cost of a cut, and the cut."""
    best = [0.0] + [math.inf] * layers
    starts: list[list[int]] = []
    for _ in range(stages):
        row = [math.inf] * (layers + 1)
        start_of = [0] * (layers + 1)
        for stop in range(1, layers + 1):
            for start in range(stop):
                cost = join(best[start], start, stop) if best[start] < math.inf else math.inf
                if cost < row[stop] * (1 - _TIE):
                    row[stop], start_of[stop] = cost, start
        best = row
        starts.append(start_of)
    cut: list[range] = []
    stop = layers
    for start_of in reversed(starts):
        cut.append(range(start_of[stop], stop))
        stop = start_of[stop]
    return best[layers], tuple(reversed(cut))
