"""Files are whole or absent."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lorafusion import files
from lorafusion.errors import OutputError
from lorafusion.files import (
    expand_path,
    home,
    replace_folder_atomic,
    write_bytes_atomic,
    write_text_atomic,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_is_written_and_replaced(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_text_atomic(file, "old")
    write_text_atomic(file, "né")
    assert file.read_bytes() == "né".encode()
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_error_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    file = tmp_path / "a"
    write_bytes_atomic(file, b"old")

    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(OSError, match="No space"):
        write_bytes_atomic(file, b"new")
    assert file.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


KILLED = """
import os, sys
from pathlib import Path
from lorafusion import files
os.{call} = lambda *_: os.kill(os.getpid(), 9)
path = Path(sys.argv[1])
if path.suffix:
    files.write_bytes_atomic(path, b"new")
else:
    with files.replace_folder_atomic(path) as folder:
        (folder / "x").write_text("new")
"""


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_process_killed_in_the_middle_leaves_the_old_content(tmp_path: Path, call: str) -> None:
    file, folder = tmp_path / "a.bin", tmp_path / "folder"
    file.write_bytes(b"old")
    folder.mkdir()
    (folder / "x").write_text("old")
    for path in (file, folder):
        command = [sys.executable, "-c", KILLED.replace("{call}", call), str(path)]
        assert subprocess.run(command, check=False).returncode == -9
    assert file.read_bytes() == b"old"
    assert (folder / "x").read_text() == "old"


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_bytes_atomic(tmp_path / "a", b"")
        with replace_folder_atomic(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


def test_a_link_to_a_file_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_text_atomic(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_folder_is_made_with_its_parents_and_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "job"
    for content in ("one", "two"):
        with replace_folder_atomic(path) as folder:
            (folder / content).mkdir()
            (folder / content / "x").write_text(content)
    assert names(path) == ["two"]
    assert names(path.parent) == ["job"]


def test_an_error_in_the_block_leaves_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "job"
    with replace_folder_atomic(path) as folder:
        (folder / "x").write_text("old")
    with pytest.raises(FileNotFoundError), replace_folder_atomic(path) as folder:
        (folder / "not" / "there").write_text("new")
    assert (path / "x").read_text() == "old"
    assert names(tmp_path) == ["job"]


def test_an_error_at_the_second_rename_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "job"
    path.mkdir()
    (path / "x").write_text("old")
    calls = 0
    replace = os.replace

    def fail_second(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError("Input/output error")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", fail_second)
    with pytest.raises(OSError, match="Input/output"), replace_folder_atomic(path):
        pass
    assert (path / "x").read_text() == "old"
    assert names(tmp_path) == ["job"]


def test_a_file_is_never_replaced_by_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "job"
    path.write_text("precious")
    with pytest.raises(OutputError, match="is a file"), replace_folder_atomic(path):
        pass
    assert path.read_text() == "precious"


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "job").symlink_to("disk")
    with replace_folder_atomic(tmp_path / "job") as folder:
        (folder / "x").write_text("new")
    assert (tmp_path / "job").is_symlink()
    assert names(tmp_path / "disk") == ["x"]


def test_home_and_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LORAFUSION_HOME", raising=False)
    assert home() == tmp_path / ".cache" / "lorafusion"
    assert expand_path("$LORAFUSION_HOME/x") == f"{tmp_path}/.cache/lorafusion/x"
    monkeypatch.setenv("LORAFUSION_HOME", "~/cache")
    monkeypatch.setenv("LORAFUSION_HOMES", "/elsewhere")
    assert expand_path("${LORAFUSION_HOME}/x") == f"{tmp_path}/cache/x"
    assert expand_path("$LORAFUSION_HOMES/x") == "/elsewhere/x"
    assert expand_path("~/x") == f"{tmp_path}/x"
    assert expand_path("name/model") == "name/model"
