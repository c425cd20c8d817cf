"""The modules of a base: those that torch sees, also when they were kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lorafusion import base_names
from lorafusion.base_names import base_module_names
from lorafusion.errors import ModelError
from lorafusion.models.load import meta_model
from lorafusion.module_names import module_names


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAFUSION_HOME", str(tmp_path / "home"))


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    shutil.copy(tiny_base / "config.json", folder)
    return folder


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The bases that torch was asked for."""
    asked: list[str] = []
    look = base_names._look

    def counted(base_model: str) -> object:
        asked.append(base_model)
        return look(base_model)

    monkeypatch.setattr(base_names, "_look", counted)
    return asked


def test_kept_names_are_the_models(base: Path, looks: list[str]) -> None:
    expected = module_names(meta_model(str(base)))
    assert len(expected.linears) == 14
    assert base_module_names(str(base)) == expected
    assert base_module_names(str(base)) == expected
    assert looks == [str(base)]


def test_another_config_is_looked_at_again(base: Path, looks: list[str]) -> None:
    base_module_names(str(base))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    assert len(base_module_names(str(base)).linears) == 7
    assert len(looks) == 2


@pytest.mark.parametrize("what", ["version", "code_digest"])
def test_another_transformers_or_other_code_looks_again(
    base: Path, looks: list[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    base_module_names(str(base))
    answers = {"version": lambda _: "99", "code_digest": lambda *_: b"other"}
    monkeypatch.setattr(base_names, what, answers[what])
    base_module_names(str(base))
    assert len(looks) == 2


def test_a_refusal_is_not_kept(base: Path, looks: list[str]) -> None:
    good = (base / "config.json").read_text()
    (base / "config.json").write_text(json.dumps({**json.loads(good), "architectures": ["Bert"]}))
    for _ in range(2):
        with pytest.raises(ModelError, match="no causal LM"):
            base_module_names(str(base))
    (base / "config.json").unlink()
    with pytest.raises(ModelError, match="no folder with a config"):
        base_module_names(str(base))
    assert len(looks) == 3


def test_a_hub_id_is_taken_from_the_hubs_cache(
    base: Path, tmp_path: Path, looks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the layout that huggingface_hub itself reads: it is asked the first time, offline."""
    from huggingface_hub import constants, try_to_load_from_cache

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    repository = cache / "models--someone--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copy(base / "config.json", snapshot)
    theirs = try_to_load_from_cache("someone/tiny", "config.json", cache_dir=cache)
    assert base_names._config_file("someone/tiny") == Path(str(theirs))
    monkeypatch.setattr(base_names, "_look", lambda _: module_names(meta_model(str(base))))
    names = base_module_names("someone/tiny")
    monkeypatch.setattr(base_names, "_look", pytest.fail)
    assert base_module_names("someone/tiny") == names
    assert base_names._config_file("someone/other") is None
