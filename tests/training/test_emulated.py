"""A number format that the processor imitates is told of; nothing else is."""

from __future__ import annotations

import pytest
import torch

from lorafusion.training import emulated

CPU = torch.device("cpu")


@pytest.mark.parametrize(("slowdown", "told"), [(0.4, False), (1.9, False), (37.0, True)])
def test_what_is_slow_is_told(slowdown: float, told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {torch.float32: 1.0, torch.bfloat16: slowdown}
    monkeypatch.setattr(emulated, "_seconds", seconds.__getitem__)
    note = emulated.note_on_dtype(torch.bfloat16, CPU)
    assert (note is not None) == told
    if note is not None:
        assert "37 times" in note
        assert "`dtype: float32`" in note


def test_other_types_and_devices_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulated, "_seconds", lambda _: pytest.fail("measured"))
    assert emulated.note_on_dtype(torch.float32, CPU) is None
    assert emulated.note_on_dtype(torch.bfloat16, torch.device("cuda")) is None


def test_it_measures() -> None:
    assert all(emulated._seconds(dtype) > 0 for dtype in (torch.float32, torch.bfloat16))
