"""The ZeRO-3 benchmark: what it found of the base, and that other losses are no result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorafusion.bench import results, zero
from lorafusion.errors import WrongResultError

FIGURES = Path(__file__).parents[2] / "docs" / "zero" / "zero.json"


def test_a_rank_keeps_half_of_the_base() -> None:
    found = results.read(FIGURES)
    whole, cut = (
        max(turn["kinds"]["base"] for turn in found["turns"] if turn["way"] == way.name)
        for way in zero.WAYS[1:3]
    )
    assert whole / 2 <= cut <= 0.51 * whole


def test_ways_that_train_otherwise_are_no_result() -> None:
    turns: list[dict[str, Any]] = [{"way": "a", "losses": {"x": 2.0}}]
    turns.append({"way": "b", "losses": {"x": 2.001}})
    with pytest.raises(WrongResultError, match="b: job x ends with loss"):
        zero._same_losses(turns)  # pyright: ignore[reportPrivateUsage]
    zero._same_losses([turns[0], turns[0]])  # pyright: ignore[reportPrivateUsage]
