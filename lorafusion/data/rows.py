"""Read a jsonl file into checked rows. A bad row is an error with its line, never skipped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorafusion.data.formats import (
    DatasetType,
    Row,
    RowError,
    detect_type,
    parse_row,
)
from lorafusion.errors import DataError

LINES_SHOWN = 10


@dataclass(frozen=True, slots=True)
class BadRow:
    """One line that cannot be used, counted from 1, and why."""

    line: int
    why: str


@dataclass(frozen=True)
class Rows:
    """The checked rows of one file.

    Attributes:
        path: The file, as errors name it.
        type: The resolved type.
        rows: In file order, without blank lines.
        lines: The line of each row, counted from 1.
    """

    path: str
    type: DatasetType
    rows: tuple[Row, ...]
    lines: tuple[int, ...]


def read_bytes(path: str) -> bytes:
    """The content of a dataset file.

    Raises:
        DataError: There is no such file, or it cannot be read.
    """
    file = Path(path)
    if file.is_dir():
        raise DataError(f"{path}: is a folder; a dataset is one jsonl file (a JSON object a line)")
    if not file.exists():
        raise DataError(
            f"{path}: no such file (relative paths start at the current folder, {Path.cwd()})"
        )
    if not file.is_file():
        raise DataError(f"{path}: is not a regular file")
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def read_rows(path: str, type_: DatasetType | None) -> Rows:
    """Read and check every row of a jsonl file, without tokenising.

    Args:
        path: The file.
        type_: What the rows are; None finds it by the columns of the first row.

    Raises:
        DataError: The file cannot be read, holds no row, or has bad rows: the message lists the
            first ten of them with line, reason and what is needed, and how many there are.
    """
    return check_rows(read_bytes(path), path=path, type_=type_)


def check_rows(data: bytes, *, path: str, type_: DatasetType | None) -> Rows:
    """:func:`read_rows` for content that is already in memory."""
    resolved = resolve_type(data, type_, path=path)
    rows: list[Row] = []
    lines: list[int] = []
    bad: list[BadRow] = []
    for line, text in _lines(data):
        try:
            rows.append(parse_row(_decode(text), resolved))
            lines.append(line)
        except RowError as error:
            bad.append(BadRow(line, str(error)))
    if bad:
        raise DataError(_describe(path, bad, len(rows) + len(bad)))
    return Rows(path, resolved, tuple(rows), tuple(lines))


def resolve_type(data: bytes, type_: DatasetType | None, *, path: str) -> DatasetType:
    """The given type, or the one that the columns of the first row show.

    Raises:
        DataError: There is no row, or the first one does not show its type.
    """
    first = next(_lines(data), None)
    if first is None:
        raise DataError(f"{path}: has no rows; a dataset needs at least one JSON object")
    if type_ is not None:
        return type_
    line, text = first
    try:
        return detect_type(_decode(text))
    except RowError as error:
        raise DataError(f"{path}:{line}: {error}") from None


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    # Only "\n" ends a line of jsonl: str.splitlines would also cut at U+2028 inside a string.
    body = data.removeprefix(b"\xef\xbb\xbf")
    for line, text in enumerate(body.split(b"\n"), start=1):
        if text.strip():
            yield line, text


def _decode(text: bytes) -> object:
    try:
        return json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RowError(f"is not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        hint = "; each line must be one whole JSON object" if _spans_lines(text) else ""
        raise RowError(f"is not JSON: {error.msg} at column {error.colno}{hint}") from None
    except (RecursionError, ValueError) as error:  # nested too deep; a number of 5000 digits
        raise RowError(f"is not JSON that can be read: {error}") from None


def _spans_lines(text: bytes) -> bool:
    """Whether a broken line looks like a part of an indented JSON document."""
    return text.strip() in (b"[", b"{") or not text.lstrip().startswith(b"{")


def _describe(path: str, bad: list[BadRow], total: int) -> str:
    shown = [f"{path}:{row.line}: {row.why}" for row in bad[:LINES_SHOWN]]
    if len(bad) > LINES_SHOWN:
        shown.append(f"... and {len(bad) - LINES_SHOWN} more")
    return "\n".join([f"{path}: {len(bad)} of {total} rows cannot be used", *shown])
