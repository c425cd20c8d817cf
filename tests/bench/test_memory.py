"""The memory benchmark: one small cell for real, and the tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorafusion.bench import memory, memory_table, results
from lorafusion.bench.memory_cases import MemoryBase, make_base, make_spec

CELL: dict[str, Any] = {
    "base": "B",
    "capacity": 512,
    "kinds": {"base": 6e8, "activations": 3e8, "runtime": 5e8},
    "measured": {"runtime": 4e8, "loaded_peak": 9e8, "peak": 1.75e9},
}


@pytest.mark.slow
def test_an_estimate_is_near_what_training_takes(tiny_base: Path, tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": 4096,
    }
    base = make_base(MemoryBase("B", "llama", sizes), tmp_path / "base", tiny_base)
    spec = make_spec(base, 1024, tmp_path)
    found = memory.measure(spec, tmp_path)
    assert found["runtime"] < found["loaded_peak"] <= found["peak"]
    cell = {"kinds": memory.predict(spec).kinds, "measured": found}
    assert abs(memory_table.error(cell)) < memory_table.AIM


def test_errors() -> None:
    assert memory_table.error(CELL) == pytest.approx(1.4 / 1.75 - 1)
    assert memory_table.without_runtime(CELL) == pytest.approx(0.9 / 1.35 - 1)


def test_table_and_plot(tmp_path: Path) -> None:
    result = results.result("memory", cells=[CELL])
    table = memory_table.markdown(result)
    assert "| B | 512 | 600 | 300 | 500 | 1,400 | 1,750 | **-20.0%** | **-33.3%** |" in table
    memory_table.draw(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
