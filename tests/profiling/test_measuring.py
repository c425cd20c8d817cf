"""Rounds, the budget, and the largest microbatch."""

from __future__ import annotations

import pytest

from lorafusion.errors import ProfileError
from lorafusion.profiling.design import PROBES
from lorafusion.profiling.measuring import LEAST_ROUNDS, Budget, Scope, measure
from lorafusion.profiling.workbench import Timing, Workbench

SCOPE = Scope(ranks=(2, 4), longest=24, capacity=200)
# Seconds that no tiny microbatches use up, however busy the machine is.
AMPLE = Budget(600, 1e9)


def test_every_probe_is_measured(bench: Workbench) -> None:
    shares: list[float] = []
    found = measure(bench, SCOPE, AMPLE, progress=shares.append)
    assert len(found) == PROBES
    assert sum(one.held for one in found) == 6
    assert max(one.probe.counts.tokens for one in found) == SCOPE.capacity
    assert all(one.timing.microbatch > 0 and one.timing.steps > 0 for one in found)
    assert all(one.layer_bytes > one.head_bytes > 0 for one in found)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert not bench.shards


class _Counting(Workbench):
    runs = 0

    def run(self, place: object) -> Timing:
        type(self).runs += 1
        return super().run(place)  # pyright: ignore[reportArgumentType]


def test_two_rounds_are_done_whatever_the_budget(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "__class__", _Counting)
    _Counting.runs = 0
    measure(bench, SCOPE, Budget(1e-6, 1e9))
    looks = 4
    assert _Counting.runs == looks + LEAST_ROUNDS * PROBES


def test_the_largest_respects_memory(bench: Workbench) -> None:
    """A token of the tiny base holds about 3 kB; of other shapes a little more or less."""
    ample = measure(bench, SCOPE, AMPLE)
    held = max((one.layer_bytes + one.head_bytes) / one.probe.counts.tokens for one in ample)
    tight = measure(bench, SCOPE, Budget(600, 2 * 150 * held))
    assert 128 <= max(one.probe.counts.tokens for one in tight) <= 1.02 * 150


def test_too_little_memory_is_refused(bench: Workbench) -> None:
    with pytest.raises(ProfileError, match=r"128 tokens holds .* GB are free"):
        measure(bench, SCOPE, Budget(0.5, 1e4))
