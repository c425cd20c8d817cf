"""Every table of figures in README and docs is what its script makes of a committed file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from lorafusion.bench import (
    attention,
    attribution,
    demo,
    elementwise,
    kernels_table,
    loss,
    memory_table,
    pages,
    patched,
    pipeline_table,
    plan_balance,
    plan_large,
    plan_scale,
    plan_table,
    profile_study,
    service_study,
    shared,
    studies_table,
    train_table,
    what_if,
    zero_table,
)
from lorafusion.bench.study_cases import STUDIES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
Markdown = Callable[[Mapping[str, Any]], str]

# Page, mark, results, what makes the table of them.
TABLES: list[tuple[str, str, str, Markdown]] = [
    ("README.md", "bench: demo", "demo/demo.json", demo.markdown),
    ("docs/benchmarks.md", "bench: train", "benchmarks/bench.json", train_table.markdown),
    ("docs/kernels.md", "bench: attention", "kernels/attention.json", attention.markdown),
    ("docs/kernels.md", "bench: elementwise", "kernels/elementwise.json", elementwise.markdown),
    ("docs/kernels.md", "bench: kernels", "kernels/kernels.json", kernels_table.markdown),
    ("docs/kernels.md", "bench: loss", "kernels/loss.json", loss.markdown),
    ("docs/kernels.md", "bench: shared inputs", "kernels/shared.json", shared.markdown),
    ("docs/memory.md", "bench: memory", "memory/memory.json", memory_table.markdown),
    ("docs/peft.md", "bench: patched", "peft/patched.json", patched.markdown),
    *(
        ("docs/performance.md", f"bench: {name}", f"performance/{name}.json", made)
        for name, made in (
            ("attribution", attribution.markdown),
            *((name, studies_table.markdown) for name in STUDIES),
        )
    ),
    ("docs/performance.md", "bench: train", "performance/bench.json", train_table.markdown),
    ("docs/pipeline.md", "pipeline: bench", "pipeline/pipeline.json", pipeline_table.markdown),
    ("docs/planner.md", "bench: balance", "planner/balance.json", plan_balance.markdown),
    ("docs/planner.md", "bench: cases", "planner/cases.json", plan_table.cases),
    ("docs/planner.md", "bench: large", "planner/large.json", plan_large.markdown),
    ("docs/planner.md", "bench: scale", "planner/scale.json", plan_scale.markdown),
    ("docs/profiling.md", "bench: profile", "profiling/profile.json", profile_study.markdown),
    ("docs/service.md", "bench: service", "service/service.json", service_study.markdown),
    ("docs/what-if.md", "bench: what-if", "what-if/what-if.json", what_if.markdown),
    ("docs/zero.md", "bench: zero", "zero/zero.json", zero_table.markdown),
]
# Counted from the code, by tests of their own.
COUNTED = {
    "bytes",
    "bytes of a layer",
    "compiled ahead of time",
    "compiled ahead of time, loss",
    "compiled ahead of time, shared inputs",
    "fallbacks",
}


@pytest.mark.parametrize(("page", "mark", "file", "markdown"), TABLES)
def test_a_table_is_of_its_file(page: str, mark: str, file: str, markdown: Markdown) -> None:
    found = json.loads((DOCS / file).read_text())
    assert pages.found_in(ROOT / page, mark) == markdown(found)
    assert datetime.fromisoformat(found["started"])
    assert found["machine"]["cpu"] and found["versions"]["python"]


def test_no_table_is_left_out() -> None:
    marked = {
        (str(page.relative_to(ROOT)), mark)
        for page in (ROOT / "README.md", *DOCS.glob("*.md"))
        for mark in re.findall(r"<!-- (.*): begin -->", page.read_text())
    }
    assert {mark for page, mark in marked if mark in COUNTED} == COUNTED
    assert {pair for pair in marked if pair[1] not in COUNTED} == {row[:2] for row in TABLES}


def test_every_picture_is_there() -> None:
    for page in (ROOT / "README.md", *DOCS.glob("*.md")):
        for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / name).read_bytes()[:4] == b"\x89PNG", f"{page.name}: {name}"
