"""A folder with a model and a tokenizer for each family, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import make_tokenizer
from tests.models.families import FAMILIES
from tests.models.measure import Measured, exact_softmax, measure


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tokens of these tests out of the user's cache."""
    monkeypatch.setenv("LORAFUSION_HOME", str(tmp_path_factory.getbasetemp() / "home"))


@pytest.fixture(scope="session")
def family_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family -> its folder."""
    folders: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            make_tokenizer(folders[name])
            FAMILIES[name].write(folders[name])
        return folders[name]

    return folder


@pytest.fixture
def float64_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """See :func:`tests.models.measure.exact_softmax`."""
    exact_softmax(monkeypatch)


@pytest.fixture(scope="session")
def measured_family(
    family_base: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Measured]:
    """Family -> what training it gave, measured once."""
    found: dict[str, Measured] = {}

    def measured(name: str) -> Measured:
        if name not in found:
            with pytest.MonkeyPatch.context() as patch:
                exact_softmax(patch)
                folder = tmp_path_factory.mktemp(f"{name}-runs")
                found[name] = measure(FAMILIES[name], family_base(name), folder)
        return found[name]

    return measured
