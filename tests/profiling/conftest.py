"""A workbench on the tiny base."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lorafusion.adapters.lora import LoraConfig
from lorafusion.launch.local import pinned_arithmetic
from lorafusion.models.load import Base, load_base
from lorafusion.profiling.workbench import Workbench


@pytest.fixture
def base(tiny_base: Path) -> Base:
    """In float32, freshly loaded."""
    return load_base(str(tiny_base), "float32")


@pytest.fixture
def bench(base: Base) -> Iterator[Workbench]:
    """One thread, adapters on all linears."""
    with pinned_arithmetic(1):
        yield Workbench(base, LoraConfig(lora_dropout=0.1, target_modules="all-linear"))
