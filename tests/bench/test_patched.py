"""``lorafusion.bench.patched``: what it computes, compares and shows."""

from __future__ import annotations

import pytest

from lorafusion.bench import patched
from lorafusion.errors import WrongResultError

SMALL = {"layers": 1, "length": 6, "rank": 2, "rounds": 1}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    monkeypatch.setattr(patched, "SHAPE", {**patched.SHAPE, **shape, "num_key_value_heads": 1})


def test_the_ways_compute_the_same() -> None:
    cases = [patched.measure(**SMALL, dropout=dropout) for dropout in (0.0, 0.1)]
    assert {len(times) for case in cases for times in case["seconds"].values()} == {1}
    about = {
        "started": "2026-01-02T03:04:05+00:00",
        "machine": {"cpu": "a CPU"},
        "versions": {"python": "3.11.0", "torch": "2"},
    }
    seconds = {f"{kind}, {way}": [2.0, 3.0] for kind in ("one", "four") for way in ("peft", "x")}
    seconds |= {f"{kind}, patched": [1.0, 2.0] for kind in ("one", "four")}
    lines = patched.markdown(
        {**about, **SMALL, "cases": [{"dropout": 0.1, "seconds": seconds}]}
    ).splitlines()
    assert lines[-1] == (
        "| four adapters, a row each | 0.1 | 2,500 ms | 1,500 ms | **1.75** (1.50..2.00) |"
    )


def test_a_wrong_gradient_stops_it(monkeypatch) -> None:
    right = patched._patched

    def wrong(model, step, ids):
        right(model, step, ids)
        next(p for p in model.parameters() if p.grad is not None).grad.mul_(1.01)

    monkeypatch.setattr(patched, "_patched", wrong)
    with pytest.raises(WrongResultError, match="differs by"):
        patched.measure(**SMALL, dropout=0.0)
