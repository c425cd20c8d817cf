"""The four top-level folders: linked into the package, never packages of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP_LEVEL = ("kernels", "planner", "launch", "jobs")


@pytest.mark.parametrize("name", TOP_LEVEL)
def test_link_is_relative_and_folder_is_no_package(name: str) -> None:
    link = ROOT / "lorafusion" / name
    assert os.readlink(link) == f"../{name}"
    assert link.is_dir()
    assert not (ROOT / name / "__init__.py").exists()


@pytest.mark.parametrize("name", TOP_LEVEL)
def test_a_package_of_that_name_is_found_from_the_checkout(name: str, tmp_path: Path) -> None:
    """Hugging Face's ``kernels``, which transformers imports, must win over our folder."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    code = f"import importlib.util; print(importlib.util.find_spec({name!r}).origin)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == str(tmp_path / name / "__init__.py")
