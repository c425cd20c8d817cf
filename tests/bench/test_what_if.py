"""The default cost model beside published figures, and the page that says so."""

from __future__ import annotations

from pathlib import Path

from lorafusion.bench import results, what_if

DOCS = Path(__file__).parents[2] / "docs"


def test_layers() -> None:
    for cell in what_if.layer_cells():
        for theirs, ours in zip(cell["published_ms"], cell["ours_ms"], strict=True):
            assert abs(ours / theirs - 1) < 0.08, cell["base"]


def test_the_results_are_whole() -> None:
    found = results.read(DOCS / "what-if" / results.file_name("what-if"))
    assert len(found["rates"]) == 3 * len(what_if.DATA) + len(what_if.SCALING)
    assert not any(cell["refused"] for cell in found["rates"])
