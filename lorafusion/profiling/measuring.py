"""Times the probes in rounds, as many as the time allows."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from statistics import median

from lorafusion.errors import ProfileError
from lorafusion.profiling.design import PROBES, SHARE, Probe, held_out, single, to_fit
from lorafusion.profiling.fit import fit_line
from lorafusion.profiling.workbench import Timing, Workbench

__all__ = ["Budget", "Measured", "Scope", "measure"]

# Each probe is measured at least so often; a median of fewer would let one disturbance through.
LEAST_ROUNDS = 2
MOST_ROUNDS = 7
# The largest probe, in tokens: less says little of a run, and a GPU is full with more.
_LEAST, _MOST = 128, 16_384
# Tokens of two microbatches that tell how large the others may be.
_LOOKS = (32, 256)
# Share of the free memory that the largest probe's activations may take.
_ROOM = 0.5


@dataclass(frozen=True, slots=True)
class Scope:
    """What the run will hold.

    Attributes:
        ranks: Of its adapters.
        longest: Tokens of its longest sample.
        capacity: The most tokens of a microbatch that is of interest.
    """

    ranks: tuple[int, ...]
    longest: int
    capacity: int


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be used.

    Attributes:
        seconds: About; two rounds are always done.
        memory_bytes: Free for activations.
    """

    seconds: float
    memory_bytes: float


@dataclass(frozen=True, slots=True)
class Measured:
    """A probe and what it took.

    Attributes:
        probe: It.
        timing: Medians over the rounds.
        held: Whether it is held out of the fit.
        layer_bytes: Held by all layers for the backward.
        head_bytes: Held by the head.
    """

    probe: Probe
    timing: Timing
    held: bool
    layer_bytes: int
    head_bytes: int


def measure(
    bench: Workbench,
    scope: Scope,
    budget: Budget,
    *,
    progress: Callable[[float], None] = lambda _: None,
) -> tuple[Measured, ...]:
    """Measure all probes in turns, in another order each round.

    Args:
        bench: Runs them.
        scope: What ranks and lengths are of interest.
        budget: Seconds and bytes.
        progress: Told the share that is done, from 0 to 1.

    Raises:
        ProfileError: Not even the smallest microbatch fits into the memory.
    """
    began = time.perf_counter()
    most = _largest(bench, scope, budget)
    longest = min(scope.longest, most)
    fitted = to_fit(most, longest, scope.ranks)
    probes = (*fitted, *held_out(most, longest, scope.ranks))
    found: list[list[Timing]] = [[] for _ in probes]
    shuffle = random.Random(0)
    with bench.placed(probes) as places:
        saved = [bench.saved_bytes(place) for place in places]
        for done in range(MOST_ROUNDS):
            used = time.perf_counter() - began
            if done >= LEAST_ROUNDS and used * (done + 1) / done > budget.seconds:
                break
            for count, index in enumerate(shuffle.sample(range(len(probes)), len(probes)), 1):
                found[index].append(bench.run(places[index]))
                by_rounds = (done + count / len(probes)) / MOST_ROUNDS
                progress(max(by_rounds, min(1.0, (time.perf_counter() - began) / budget.seconds)))
    progress(1.0)
    return tuple(
        Measured(probe, _median(timings), index >= len(fitted), *held)
        for index, (probe, timings, held) in enumerate(zip(probes, found, saved, strict=True))
    )


def _median(timings: Sequence[Timing]) -> Timing:
    columns = zip(*(astuple(timing) for timing in timings), strict=True)
    return Timing(*map(median, columns))


def _largest(bench: Workbench, scope: Scope, budget: Budget) -> int:
    """Tokens of the largest probe, by what two smaller ones take of time and memory."""
    fixed, each, held = _first_look(bench, max(scope.ranks))
    room = budget.memory_bytes * _ROOM
    if held * _LEAST > room:
        raise ProfileError(
            f"a microbatch of {_LEAST} tokens holds {held * _LEAST / 1e9:.2f} GB of activations, "
            f"and {budget.memory_bytes / 1e9:.2f} GB are free, of which a profile takes at most "
            f"{_ROOM:.0%}. Free memory, or choose a smaller base."
        )
    a_round = budget.seconds / (LEAST_ROUNDS + 1) - fixed * PROBES
    wanted = (min(_MOST, scope.capacity), a_round / (SHARE * each), room / held)
    return max(_LEAST, int(min(wanted)))


def _first_look(bench: Workbench, rank: int) -> tuple[float, float, float]:
    """Seconds of any microbatch and of each token, and bytes that a token holds."""
    seconds: list[float] = []
    held = 0.0
    for tokens in _LOOKS:
        with bench.placed([single(tokens, rank)]) as (place,):
            held = sum(bench.saved_bytes(place)) / tokens
            bench.run(place)  # the first of a size allocates
            seconds.append(bench.run(place).microbatch)
    fixed, each = fit_line(list(map(float, _LOOKS)), seconds)
    return fixed, max(each, 1e-9), held
