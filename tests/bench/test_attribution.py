"""Where a step's time goes: every part has a row, and the rows are the whole step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorafusion.bench import attribution
from lorafusion.jobs.loading import load_run_file
from lorafusion.training import operations


def test_a_step_of_a_tiny_base(job_file: Path) -> None:
    found = attribution.study(load_run_file(job_file), 1)
    assert found["microbatch"]["jobs"] == 2
    (turn,) = found["turns"]
    assert set(turn["limit"]) == set(attribution.LIMITED)
    rows = turn["operations"]
    expected = {
        *attribution.LIMITED,
        *(f"LoRA, {way}" for way in ("forward", "backward")),
        *(f"attention, {way}" for way in ("forward", "backward")),
        *("norms", "gated product", "rotary positions", "softmax and loss", "optimizer"),
    }
    assert expected <= set(rows)
    assert all(seconds > 0 for name, seconds in rows.items() if name in expected)


@pytest.mark.parametrize(
    ("kind", "name", "node", "row"),
    [
        (operations.BASE, "aten::mm", True, "products of the layers"),
        (operations.HEAD, "aten::mm", False, "products of the head"),
        (operations.HEAD, "_CrossEntropy", False, "softmax and loss"),
        (operations.ADAPTERS, "lora down 3", False, "LoRA, forward"),
        (operations.ATTEND, "_PackedAttentionBackward", True, "attention, backward"),
        (operations.POINTWISE, "_RmsNormBackward", True, "norms"),
        (operations.POINTWISE, "aten::add", False, "sums of residuals"),
        (operations.OTHER, "layer 3", False, "Python and autograd"),
        (operations.COPIES, "aten::copy_", True, operations.COPIES),
    ],
)
def test_rows(kind: str, name: str, node: bool, row: str) -> None:
    assert attribution.named(kind, name, node=node) == row


def test_the_table() -> None:
    turn: dict[str, Any] = {
        "limit": {"products of the layers": 4.0, "products of the head": 1.0},
        "operations": {
            "products of the layers": 4.5,
            "products of the head": 1.0,
            "LoRA, forward": 2.0,
            "norms": 0.5,
        },
        "seconds": 8.0,
        "cpu_s": 16.0,
        "system_s": 0.8,
        "page_faults": 1234,
        "other_cores": None,
    }
    result = {
        "started": "2026-01-02T03:04:05+00:00",
        "machine": {"cpu": "a CPU"},
        "versions": {"python": "3.11", "torch": "2"},
        "base": "B",
        "dtype": "float32",
        "threads": 2,
        "rank": 16,
        "dropout": 0.0,
        "microbatch": {"tokens": 2048, "labelled": 300, "jobs": 3},
        "turns": [turn],
    }
    lines = attribution.markdown(result).splitlines()
    assert "**62% of the limit** (paired, median of the rounds)." in lines
    table = [line for line in lines if line.startswith("| ")]
    assert table[1:] == [
        "| --- | ---: | ---: | ---: | ---: |",
        "| LoRA, forward | 2.000 | 25.0% |  | 25.0% |",
        "| products of the layers | 4.500 | 56.2% | 4.000 | 6.2% |",
        "| norms | 0.500 | 6.2% |  | 6.2% |",
        "| products of the head | 1.000 | 12.5% | 1.000 | 0.0% |",
        "| step, without the profiler | 8.000 | 100% | 5.000 | 37.5% |",
    ]
    assert "1,234 page faults a step, 5.0% of its CPU time" in lines[-1]
