"""The benchmark of the elementwise ops: what it compares, and what stops it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lorafusion.bench import elementwise, elementwise_ways
from lorafusion.bench.elementwise import QUICK_CASES, WAYS
from lorafusion.bench.elementwise_ways import COMPILED, EAGER, OURS
from lorafusion.bench.op_run import OpRun
from lorafusion.errors import WrongResultError


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without one; compiling takes a minute."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: refuse)


@pytest.mark.usefixtures("no_compiler")
def test_it_measures_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elementwise, "CPU_CASES", QUICK_CASES)  # else without the compiler
    seen: list[str] = []
    elementwise.run(
        OpRun("cpu", 2, tmp_path),
        lambda case, over: seen.append(f"{case}: {over[EAGER].median > 0}"),
    )
    assert seen == [
        "rms_norm, 128 x 96, float32: True",
        "rotary, 128 x 3 x 1 x 32, float32: True",
        "silu, 128 x 256, float32: True",
        "gelu_tanh, 128 x 256, float32: True",
    ]
    found = json.loads((tmp_path / "elementwise.json").read_text())
    for case in found["cases"]:
        assert set(case["forward_s"]) == {OURS, EAGER}
        assert case["without"] == {COMPILED: "no compiler"}
        both = [
            [f + b for f, b in zip(case["forward_s"][w], case["backward_s"][w], strict=True)]
            for w in (EAGER, OURS)
        ]
        ratios = sorted(a / b for a, b in zip(*both, strict=True))
        assert case["over_ours"][EAGER]["low"] == ratios[0]
        assert case["over_ours"][EAGER]["high"] == ratios[1]
    lines = elementwise.markdown(found).splitlines()
    assert lines[2] == "| op | rows x widths | base | transformers / lorafusion |"
    assert lines[-1].startswith("| gelu_tanh | 128 x 256 | float32 | ")


@pytest.mark.usefixtures("no_compiler")
def test_results_that_differ_stop_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = elementwise_ways.rotary

    def wrong(*args: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q, k = right(*args)
        return q, k * 1.001

    monkeypatch.setattr(elementwise_ways, "rotary", wrong)
    with pytest.raises(WrongResultError, match=r"rotary.* transformers and lorafusion differ by 1"):
        elementwise.run(OpRun("cpu", 1, tmp_path, quick=True))


def test_a_missing_way_has_a_dash() -> None:
    spread = {"median": 2.0, "low": 1.0, "high": 3.0}
    case = {"op": "rotary", "rows": 8, "widths": [3, 1, 32], "dtype": "float32"}
    result = {
        "started": "2026-01-02T03:04:05",
        "machine": {"cpu": "a processor", "gpu": None, "threads": 2},
        "versions": {"torch": "9", "python": "3"},
        "rounds": 4,
        "ways": WAYS,
        "cases": [
            {**case, "over_ours": {EAGER: spread}},
            {**case, "over_ours": {EAGER: spread, COMPILED: spread}},
        ],
    }
    lines = elementwise.markdown(result).splitlines()
    assert lines[-2:] == [
        "| rotary | 8 x 3 x 1 x 32 | float32 | 2.00 (1.00..3.00) | - |",
        "| rotary | 8 x 3 x 1 x 32 | float32 | 2.00 (1.00..3.00) | 2.00 (1.00..3.00) |",
    ]
    assert len(QUICK_CASES) == 4
