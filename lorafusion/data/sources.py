"""Where a dataset's rows are: a local file, a folder of files of one kind, or ``datasets``."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from lorafusion.data.formats import listed
from lorafusion.data.readers import READERS, Numbered, has_lines, read_file
from lorafusion.errors import DataError
from lorafusion.jobs.schema import DatasetConfig

# The words by which file and folder names tell splits apart, as `datasets` reads them.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_SAVED = ("dataset_dict.json", "state.json")  # what Dataset.save_to_disk leaves in its folder


class Part(Protocol):
    """Rows that stand in one place: a file, or a dataset of the hub."""

    def rows(self) -> Numbered:
        """Decoded rows (or what is wrong with one) and their numbers, from the first."""
        ...

    def place(self, number: int) -> str:
        """How errors name a row."""
        ...

    def identity(self) -> str:
        """What the rows depend on, in hexadecimal: equal content, equal identity."""
        ...

    def stamp(self) -> object:
        """What changes when somebody writes to it."""
        ...


@dataclass(frozen=True)
class FilePart:
    """One local file."""

    path: Path

    def rows(self) -> Numbered:
        """The file's rows and their numbers."""
        return read_file(self.path)

    def place(self, number: int) -> str:
        """``file:line``, or the file and the number of the row where it has no lines."""
        sign = ":" if has_lines(self.path) else ": row "
        return f"{self.path}{sign}{number}"

    def stamp(self) -> object:
        """Size, and the time of the last change."""
        try:
            found = self.path.stat()
        except OSError:  # gone, which the reader reports
            return None
        return found.st_size, found.st_mtime_ns

    def identity(self) -> str:
        """SHA-256 of the bytes."""
        try:
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class Source:
    """All of a dataset's rows, in order.

    Attributes:
        name: How reports and errors name it.
        parts: Where the rows are.
        stamps: Of the parts, when the source was opened.
    """

    name: str
    parts: tuple[Part, ...]
    stamps: tuple[object, ...]

    @classmethod
    def of(cls, name: str, parts: Iterable[Part]) -> Source:
        """The parts as they are now."""
        every = tuple(parts)
        return cls(name, every, tuple(part.stamp() for part in every))

    def rows(self) -> Iterator[tuple[Part, int, object]]:
        """Each row with its part and its number there."""
        for part in self.parts:
            for number, row in part.rows():
                yield part, number, row

    def identity(self) -> str:
        """What the rows depend on: of one file the SHA-256 of its bytes."""
        found = [part.identity() for part in self.parts]
        return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()

    def check_unchanged(self) -> None:
        """Refuse what was written to since it was opened: its identity is that of other rows.

        Raises:
            DataError: It was.
        """
        if tuple(part.stamp() for part in self.parts) != self.stamps:
            raise DataError(f"{self.name}: was changed while it was read; start again")


def open_source(config: DatasetConfig) -> Source:
    """Find where the rows are. Reads names, not rows, unless ``datasets`` is needed.

    Raises:
        DataError: There is nothing, or it is not clear which rows are meant.
    """
    path = Path(config.path)
    if _is_for_datasets(config, path):
        from lorafusion.data.hub import DatasetsPart

        part = DatasetsPart.load(config)
        return Source.of(part.name, (part,))
    _check_local(config, path)
    if path.is_dir():
        files = _of_split(config, _of_one_kind(path, _in_folder(config, path)))
        return Source.of(config.path, map(FilePart, files))
    if not path.is_file():
        raise DataError(f"{path}: is not a regular file")
    if config.data_files is not None:
        raise DataError(f"{path}: is one file; data_files picks files of a folder, so remove it")
    if config.split not in (None, "train"):
        raise DataError(f"{path}: is one file, of which the only split is train")
    return Source.of(config.path, (FilePart(path),))


def _is_for_datasets(config: DatasetConfig, path: Path) -> bool:
    """Whether ``datasets`` has to look: at hub ids, named subsets, slices, what it saved itself."""
    if not path.exists():
        suffix = path.suffix.lower()
        return bool(_HUB_ID.fullmatch(config.path)) and suffix not in (*READERS, ".txt")
    if path.is_dir() and any((path / name).is_file() for name in _SAVED):
        return True
    return config.name is not None or not re.fullmatch(r"[\w.-]*", config.split or "")


def _check_local(config: DatasetConfig, path: Path) -> None:
    if not path.exists():
        raise DataError(
            f"{path}: no such file (relative paths start at the current folder, {Path.cwd()})"
        )
    if config.revision is not None:
        raise DataError(f"{path}: is on this disk, where nothing has a revision; remove `revision`")


def _in_folder(config: DatasetConfig, folder: Path) -> list[Path]:
    """The files of rows in a folder and below, by name; or those that ``data_files`` picks."""
    if config.data_files is None:
        found = [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in READERS]
        found = [file for file in found if file.is_file() and not _hidden(file, folder)]
        if not found:
            raise DataError(f"{folder}: is a folder without a data file ({', '.join(READERS)})")
        return found
    patterns = (config.data_files,) if isinstance(config.data_files, str) else config.data_files
    picked: dict[Path, None] = {}
    for pattern in patterns:
        found = _matches(folder, pattern)
        if not found:
            there = sorted(file.name for file in folder.iterdir())
            raise DataError(
                f"{folder}: no file matches data_files {pattern!r} (found {listed(there)})"
            )
        picked |= dict.fromkeys(found)
    return list(picked)


def _matches(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(file for file in folder.glob(pattern) if file.is_file())
    except (ValueError, NotImplementedError) as error:  # an empty or an absolute pattern
        raise DataError(
            f"{folder}: data_files {pattern!r} is no pattern of files in it ({error}); "
            "write it from that folder on, such as `part-*.jsonl`"
        ) from error


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith((".", "__")) for part in file.relative_to(folder).parts)


def _of_one_kind(folder: Path, files: list[Path]) -> dict[Path, str | None]:
    """The split that the name of each file tells, once they are all of one kind."""
    kinds = sorted({file.suffix.lower() for file in files})
    if len(kinds) > 1:
        raise DataError(
            f"{folder}: is a folder with files of several kinds ({', '.join(kinds)}); "
            f"say which are meant, such as `data_files: '*{kinds[0]}'`"
        )
    return {file: _split_of(file.relative_to(folder)) for file in files}


def _split_of(name: Path) -> str | None:
    words = re.split(r"[\W_\d]+", str(name).lower())
    return next((SPLIT_WORDS[word] for word in reversed(words) if word in SPLIT_WORDS), None)


def _of_split(config: DatasetConfig, splits: dict[Path, str | None]) -> Iterable[Path]:
    """The files of the split: all of them where no name tells one, as `datasets` has it."""
    there = {split or "train" for split in splits.values()}
    if config.data_files is not None and config.split is None:
        return list(splits)
    wanted = config.split or "train"
    if wanted not in there:
        _unknown_split(config.path, wanted, sorted(there))
    return [file for file, split in splits.items() if (split or "train") == wanted]


def _unknown_split(name: str, wanted: str, there: list[str]) -> NoReturn:
    raise DataError(f"{name}: has no split {wanted}; there are: {', '.join(there)}")
