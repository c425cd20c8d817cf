"""A folder with a model and a tokenizer for each family, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import make_tokenizer
from tests.models.families import FAMILIES


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
def exact_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transformers' eager attention, which softcaps need, stay in float64 for float64 scores.

    It asks for a softmax in float32 whatever the model's dtype is, which costs nine digits.
    """
    softmax = F.softmax

    def exact(scores: torch.Tensor, *args: Any, dtype: Any = None, **kwargs: Any) -> torch.Tensor:
        kept = scores.dtype if scores.dtype == torch.float64 else dtype
        return softmax(scores, *args, dtype=kept, **kwargs)

    monkeypatch.setattr(F, "softmax", exact)
