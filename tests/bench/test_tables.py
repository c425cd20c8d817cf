"""The tables that pages show of `bench train`, `bench kernels` and the demo, and their pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorafusion.bench import demo, kernels_table, pages, plan_plot, train_table
from lorafusion.errors import BenchError

ABOUT: dict[str, Any] = {
    "started": "2026-01-02T03:04:05+00:00",
    "machine": {"cpu": "a CPU", "cores": 2, "gpu": None, "threads": 1},
    "versions": {"python": "3.11.0", "torch": "2"},
}
PNG = b"\x89PNG"


def spread(median: float) -> dict[str, float]:
    return {"median": median, "low": median / 2, "high": 2 * median}


def train_result() -> dict[str, Any]:
    ways = [
        {"way": "lorafusion", "tokens_per_s": spread(400), "ratio": None, "peak_rss_mb": 3400.0},
        {"way": "peft-padded", "tokens_per_s": spread(160), "ratio": spread(2.5), "peak_rss_mb": 9},
        {"way": "limit", "tokens_per_s": spread(640), "ratio": None, "peak_rss_mb": 900.0},
    ]
    for way, share in zip(ways, (0.625, 0.25, None), strict=True):
        way["of_limit"] = None if share is None else spread(share)
    loss = {"job": "a", "way": "peft-padded", "ours": 2.0, "theirs": 2.1, "worst_step": 1.2e-6}
    return {
        **ABOUT,
        "settings": {"dtype": "float32", "threads": 2, "steps": 3, "rounds": 5},
        "jobs": [{"tokens": 1000}, {"tokens": 234}],
        "turns": [{"noise": {"other_cores": 0.25}}, {"noise": {"other_cores": None}}],
        "comparisons": [{"dropout": 0.0, "ways": ways, "losses": [loss]}],
    }


def test_train() -> None:
    lines = train_table.markdown(train_result()).splitlines()
    assert lines[0].startswith("2026-01-02, a CPU, Python 3.11.0; torch 2, float32, 2 threads; 2 j")
    assert "3 steps, 1,234 tokens in all; rounds: 5" in lines[0]
    assert "at most 0.2 cores busy" in lines[0]
    assert "| `lorafusion` | 400 (200 to 800) |  |  | **62%** | 3.4 |" in lines
    assert "| `peft-padded` | 160 (80 to 320) | **2.50×** | 1.25 to 5.00 | 25% | 0.0 |" in lines
    assert "| `limit` | 640 (320 to 1,280) |  |  |  | - |" in lines
    assert "The limit is 4.00 times `peft-padded`." in lines
    assert "| a | 2.000 | 2.100 | 1.2e-06 |" in lines


def test_kernels() -> None:
    ratios = [
        {"of": "peft", "to": "lorafusion", **spread(1.5)},
        {"of": "lorafusion", "to": "frozen", **spread(1.2)},
    ]
    case = {"rows": 8, "K": 4, "N": 2, "dtype": "float32", "dropout": 0.1, "ratios": ratios}
    result = {
        **ABOUT,
        "rounds": 3,
        "ways": dict.fromkeys(("frozen", "lorafusion", "peft"), ""),
        "cases": [case],
    }
    head, *_, row = kernels_table.markdown(result).splitlines()[2:]
    assert head.endswith("| peft / lorafusion | lorafusion / frozen | peft / frozen |")
    last = "| 1.50 (0.75..3.00) | 1.20 (0.60..2.40) | - |"
    assert row == f"| 8, 4, 2 | float32 | 0.1 {last}"


def test_demo(tmp_path: Path) -> None:
    answers = "a: a held-out prompt\nprompt x\n\ncrepe: a held-out prompt\nprompt y\n\n"
    table = "job      state\na        succeeded\n\n"
    printed = f"note: x\n{table}{answers}9 tokens/s · base unchanged\nruns/x\n"
    losses = {"train": [[1, 2.0], [2, 1.0]], "eval": [[0, 3.0], [2, 1.5]]}
    result = {
        **ABOUT,
        "dtype": "float32",
        "closing": demo.closing(printed),
        "jobs": [{"name": "a", "rank": 4, "losses": losses}],
    }
    text = demo.markdown(result)
    shown = "crepe: a held-out prompt\nprompt y\n\n"
    assert text.startswith(f"```\n{table}{shown}9 tokens/s · base unchanged\n```\n")
    assert text.endswith("(2026-01-02, a CPU, Python 3.11.0; torch 2, float32, 2 cores)")
    demo.draw(result, tmp_path / "new" / "demo.png")
    assert (tmp_path / "new" / "demo.png").read_bytes().startswith(PNG)


def test_a_picture_of_cases(tmp_path: Path) -> None:
    reached = {"places": 12, "noops": 1, "bubble": 0.25}
    case = {"name": "c", "bound": 10, "tight": None, **reached}
    for baselines in ({}, {"mlora": reached}):
        result = {"cases": [{**case, "baselines": baselines}]}
        plan_plot.draw_cases(result, tmp_path / "cases.png")
        assert (tmp_path / "cases.png").read_bytes().startswith(PNG)


def test_what_a_table_was_made_from_goes_beside_its_page(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "bench.json").write_text("{}")
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    page.write_text("no marks\n")
    pages.keep_beside(page, tmp_path / "run", ("bench.json",))
    assert (tmp_path / "docs" / "page" / "bench.json").read_text() == "{}"
    with pytest.raises(BenchError, match="has no lines '<!-- x: begin -->'"):
        pages.put_into(page, "x", "table")
