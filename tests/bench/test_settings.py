"""What a benchmark may be asked for."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from lorafusion.bench.settings import (
    WAYS,
    Settings,
    check_packages,
    parse_against,
    parse_dropouts,
)
from lorafusion.errors import BenchError


def test_names_after_against() -> None:
    assert parse_against("trl, peft,trl") == ("trl", "peft")
    nothing: Any = None
    asked = Settings(Path("f"), nothing, ("peft", "trl", "deterministic"), 1, 1, (0.0,), Path("o"))
    assert asked.ways == tuple(WAYS)
    for text in ("", ",", "peft,axolotl"):
        with pytest.raises(BenchError, match="allowed: peft, trl, deterministic"):
            parse_against(text)


def test_dropouts() -> None:
    assert parse_dropouts("0, 0.05,0") == (0.0, 0.05)
    for text in ("", "1", "-0.1", "nan", "a", "0,b"):
        with pytest.raises(BenchError, match="from 0 to below 1"):
            parse_dropouts(text)


def test_missing_packages_are_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    check_packages(("peft", "trl", "deterministic"))
    found = importlib.util.find_spec
    absent = {"trl", "matplotlib"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in absent else found(name)
    )
    with pytest.raises(BenchError, match=r"needs matplotlib, trl: pip install 'lorafusion\[bench"):
        check_packages(("peft", "trl"))
    absent.remove("matplotlib")
    check_packages(("peft",))
