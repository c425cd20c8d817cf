"""The fit: exact where the cost is linear, never below 0, and by relative errors."""

from __future__ import annotations

import random
from dataclasses import astuple

import pytest

from lorafusion.planner.cost import Counts, Linear
from lorafusion.profiling.design import to_fit
from lorafusion.profiling.fit import errors, fit_line, fit_linear, median_error

COUNTS = [probe.counts for probe in to_fit(2048, 512, (4, 8, 64))]


def test_a_linear_cost_is_found() -> None:
    cost = Linear(0.3, 0.006, 2e-6, 0.002, 0.01, 5e-5)
    found = fit_linear(COUNTS, [cost(counts) for counts in COUNTS])
    assert found.values == pytest.approx(cost.values, rel=1e-6)


@pytest.mark.parametrize("missing", range(6))
def test_what_costs_nothing_is_nothing(missing: int) -> None:
    values = [0.3, 0.006, 2e-6, 0.002, 0.01, 5e-5]
    values[missing] = 0.0
    cost = Linear(*values)
    found = fit_linear(COUNTS, [cost(counts) for counts in COUNTS])
    assert found.values == pytest.approx(cost.values, rel=1e-6, abs=1e-12)


def test_no_coefficient_is_below_zero() -> None:
    """A cost that falls with the samples' lengths is fitted as well as can be without."""
    cost = Linear(0.5, 0.006)
    less = [cost(counts) - 1e-7 * counts.squares for counts in COUNTS]
    found = fit_linear(COUNTS, less)
    assert min(found.values) >= 0
    assert found.square == 0
    assert median_error(errors([found(counts) for counts in COUNTS], less)) < 0.03


def test_noise_moves_a_prediction_less_than_itself() -> None:
    noise = random.Random(0)
    cost = Linear(0.3, 0.006, 2e-6, 0.002, 0.01, 5e-5)
    measured = [cost(counts) * noise.uniform(0.95, 1.05) for counts in COUNTS]
    found = fit_linear(COUNTS, measured)
    off = errors([found(counts) for counts in COUNTS], [cost(counts) for counts in COUNTS])
    assert max(map(abs, off)) < 0.06


def test_small_ones_weigh_as_much_as_large_ones() -> None:
    """By absolute errors one that takes 1,000 times as long would fix the line by itself."""
    counts = [Counts(tokens=tokens) for tokens in (1, 2, 4, 4000)]
    found = fit_linear(counts, [1.0, 2.0, 4.0, 8000.0])
    assert abs(found(counts[0]) - 1) < 0.5


def test_a_line() -> None:
    assert fit_line([1, 2, 3], [3.0, 5.0, 7.0]) == pytest.approx((1.0, 2.0))
    assert fit_line([1, 2, 3], [2.0, 2.0, 2.0]) == pytest.approx((2.0, 0.0))


def test_errors_say_which_way() -> None:
    assert errors([1.1, 0.5], [1.0, 1.0]) == pytest.approx((0.1, -0.5))
    assert astuple(Counts()) == (0, 0, 0, 0, 0)
