"""The ZeRO-3 benchmark's page is that of its figures, and other losses are no result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorafusion.bench import pages, results, zero, zero_table
from lorafusion.errors import WrongResultError

PAGE = Path(__file__).parents[2] / "docs" / "zero.md"


def test_the_page_has_the_measured_table() -> None:
    found = results.read(PAGE.with_suffix("") / "zero.json")
    assert pages.found_in(PAGE, results.mark("zero")) == zero_table.markdown(found)
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
