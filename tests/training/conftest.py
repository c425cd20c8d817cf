"""Bases, jobs and caches for whole runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import make_llama, make_tokenizer
from tests.training import runs
from tests.training.stages import LONGEST, TWO_STEPS, Stages

Jobs = list[dict[str, Any]]


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


@pytest.fixture(scope="session")
def deep_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama of four layers."""
    folder = tmp_path_factory.mktemp("deep_base")
    make_tokenizer(folder)
    make_llama(folder, layers=4)
    return folder


@pytest.fixture(scope="module")
def stages(deep_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    """Runs on ``deep_base``, each in a few processes."""
    with Stages(tmp_path_factory.mktemp("stages"), deep_base) as running:
        yield running


@pytest.fixture(scope="session")
def four_jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """They differ in everything, clip, drop out, are evaluated, and end at different times."""
    rows = tmp_path_factory.mktemp("rows")
    return [{**job, "max_seq_len": LONGEST} for job in runs.four_jobs(rows, steps=20)]


@pytest.fixture(scope="session")
def two_jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """Checkpoints of each step are kept for a while."""
    jobs = runs.four_jobs(tmp_path_factory.mktemp("rows"), steps=TWO_STEPS)
    return [{**jobs[i], "max_seq_len": LONGEST, "save_every": 1} for i in (0, 2)]


@pytest.fixture(scope="session")
def whole(deep_base: Path, two_jobs: Jobs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two jobs in one process, undisturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    runs.run(folder, deep_base, two_jobs, deterministic=True)
    return folder
