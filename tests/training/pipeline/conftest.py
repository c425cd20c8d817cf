"""The base, and the process that forks ranks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.training.pipeline.jobs import write_base
from tests.training.pipeline.teams import Teams


@pytest.fixture(scope="session")
def teams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Teams]:
    """Started once."""
    folder = tmp_path_factory.mktemp("pipeline")
    write_base(folder / "base")
    with Teams(folder, folder / "base") as started:
        yield started
