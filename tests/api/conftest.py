"""Small jobs in memory, and a cache of their own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import lorafusion
from tests.conftest import WORDS

Row = dict[str, str]


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the rows and tokens of these tests out of the user's cache."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAFUSION_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def rows() -> list[Row]:
    rng = random.Random(0)

    def text() -> str:
        return "".join(f" {word}" for word in rng.choices(WORDS, k=rng.randint(1, 6)))

    return [{"prompt": text(), "completion": text()} for _ in range(12)]


@pytest.fixture(scope="module")
def jobs(rows: list[Row]) -> list[lorafusion.Job]:
    """Two jobs of six steps; the first is evaluated."""
    one = lorafusion.Job(
        "one",
        rows,
        adapter=lorafusion.LoraConfig(r=2, lora_dropout=0.1),
        global_batch_size=3,
        max_steps=6,
        max_seq_len=40,
        eval={"val_size": 2, "every": 3},
    )
    other = lorafusion.Job(
        "other",
        rows[:7],
        adapter={"r": 3},
        learning_rate=1e-3,
        global_batch_size=2,
        max_steps=6,
        max_seq_len=40,
    )
    return [one, other]
