"""Bases, jobs and caches for whole runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import make_llama


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tokens of these tests out of the user's cache."""
    monkeypatch.setenv("LORAFUSION_HOME", str(tmp_path_factory.getbasetemp() / "home"))


@pytest.fixture(scope="session")
def untied_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama with a head of its own."""
    folder = tmp_path_factory.mktemp("untied")
    shutil.copytree(tiny_base, folder, dirs_exist_ok=True)
    make_llama(folder, tied=False, seed=5)
    return folder
