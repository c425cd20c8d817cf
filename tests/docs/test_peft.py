"""docs/peft.md: its snippets run in order, and its table of fallbacks is the code's."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from lorafusion.bench import pages
from lorafusion.kernels.patch_peft import Fallback

PAGE = Path(__file__).parents[2] / "docs" / "peft.md"


def test_the_snippets_run(
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_base, "path/to/base")
    snippets = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(snippets) == 2
    names: dict[str, object] = {}
    for number, snippet in enumerate(snippets):
        exec(compile(snippet, f"{PAGE.name}, snippet {number}", "exec"), names)
    assert Path("adapter/adapter_model.safetensors").exists()
    assert capsys.readouterr().out.startswith("14 of 14 adapter parts")


def test_the_table_of_fallbacks() -> None:
    """To write it anew: put what this asks for between the marks."""
    rows = [[f"`{why.name}`", why.value] for why in Fallback]
    assert pages.found_in(PAGE, "fallbacks") == "\n".join(pages.table(["reason", "what"], rows, 2))
