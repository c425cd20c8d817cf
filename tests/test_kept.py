"""Results kept between runs: found again, and made anew whenever something they hang on changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lorafusion import kept as kept_module
from lorafusion.errors import DataError
from lorafusion.kept import code_digest, kept
from lorafusion.module_names import ModuleNames


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORAFUSION_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


class Counter:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        return 40 + self.calls


def test_made_once(home: Path) -> None:
    make = Counter()
    assert [kept(int, [b"a", b"b"], make) for _ in range(3)] == [41, 41, 41]
    assert make.calls == 1
    assert len(list((home / "cache" / "kept").iterdir())) == 1


@pytest.mark.parametrize("key", [[b"ab"], [b"ab", b""], [b"", b"ab"], [b"b", b"a"], [b"a"]])
def test_every_part_of_the_key_counts(home: Path, key: list[bytes]) -> None:
    kept(int, [b"a", b"b"], lambda: 1)
    assert kept(int, key, lambda: 2) == 2


@pytest.mark.parametrize("text", ["", "x", "[1", '{"a": 1}', "null"])
def test_a_damaged_file_is_made_again(home: Path, text: str) -> None:
    kept(int, [b"a"], lambda: 1)
    (file,) = (home / "cache" / "kept").iterdir()
    file.write_text(text)
    assert kept(int, [b"a"], lambda: 2) == 2
    assert kept(int, [b"a"], lambda: 3) == 2


def test_an_error_is_not_kept(home: Path) -> None:
    def fail() -> int:
        raise DataError("bad row")

    with pytest.raises(DataError):
        kept(int, [b"a"], fail)
    assert kept(int, [b"a"], lambda: 2) == 2


def test_a_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORAFUSION_HOME", str(tmp_path / "file"))
    make = Counter()
    assert [kept(int, [b"a"], make) for _ in range(2)] == [41, 42]


def test_tuples_come_back_as_they_were(home: Path) -> None:
    names = ModuleNames(linears=("a.b",), everything=("", "a", "a.b"), shapes=((2, 3),))
    kept(ModuleNames, [b"a"], lambda: names)
    assert kept(ModuleNames, [b"a"], pytest.fail) == names


def test_a_change_of_our_code_changes_its_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Path(kept_module.__file__).parent
    (tmp_path / "adapters").mkdir()
    shutil.copytree(package / "models", tmp_path / "models")
    shutil.copy(package / "adapters" / "targets.py", tmp_path / "adapters" / "targets.py")
    parts = ("models", "adapters/targets.py")
    before = code_digest(*parts)
    monkeypatch.setattr(kept_module, "_PACKAGE", tmp_path)
    assert code_digest(*parts) == before
    for name in ("models/load.py", "adapters/targets.py"):
        file = tmp_path / name
        file.write_text(file.read_text() + "\n# another rule\n")
        changed = code_digest(*parts)
        assert changed != before
        before = changed
