"""Fits a linear cost to measurements: least squares of relative errors, no coefficient below 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from itertools import combinations
from statistics import median

import numpy as np

from lorafusion.planner.cost import Counts, Linear

__all__ = ["errors", "fit_linear", "fit_line", "median_error"]


def fit_linear(counts: Sequence[Counts], costs: Sequence[float]) -> Linear:
    """The best cost of :class:`Linear`'s form.

    Relative errors count, so that small microbatches weigh as much as large ones. With six
    coefficients the best that has none below 0 is found by trying every choice of those above 0.

    Args:
        counts: Of each measurement.
        costs: What it took, each above 0.
    """
    rows = np.array([(1.0, *astuple(one)) for one in counts])
    weighted = rows / np.asarray(costs)[:, None]
    scale = np.abs(weighted).max(axis=0)
    scale[scale == 0] = 1.0
    return Linear(*(_non_negative(weighted / scale, np.ones(len(costs))) / scale).tolist())


def fit_line(x: Sequence[float], costs: Sequence[float]) -> tuple[float, float]:
    """(fixed, each) of ``fixed + each · x``, as :func:`fit_linear` does it."""
    found = fit_linear([Counts(tokens=value) for value in x], costs)
    return found.fixed, found.token


def errors(predicted: Sequence[float], costs: Sequence[float]) -> tuple[float, ...]:
    """Relative error of each, with its sign: above 0 where too much was predicted."""
    return tuple(one / cost - 1 for one, cost in zip(predicted, costs, strict=True))


def median_error(found: Sequence[float]) -> float:
    """Median of their sizes."""
    return median(map(abs, found))


def _non_negative(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Least squares of ``rows · x = wanted`` with all of x at least 0."""
    columns = rows.shape[1]
    best, least = np.zeros(columns), float(wanted @ wanted)
    for count in range(1, columns + 1):
        for chosen in combinations(range(columns), count):
            part = rows[:, chosen]
            found, *_ = np.linalg.lstsq(part, wanted, rcond=None)
            missed = part @ found - wanted
            if (found >= 0).all() and float(missed @ missed) < least * (1 - 1e-9):
                best, least = np.zeros(columns), float(missed @ missed)
                best[list(chosen)] = found
    return best
