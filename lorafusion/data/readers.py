"""Files of rows -> decoded rows with their numbers, one file kind a function.

Each reader yields ``(number, row)`` as it goes, so that a large file is never in memory as a whole
(a ``.json`` array is). A line that cannot be decoded is yielded as a :class:`RowError`, so that all
bad lines of a file are found at once.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from lorafusion.data.formats import RowError, listed
from lorafusion.errors import DataError

Numbered = Iterator[tuple[int, object]]
ROWS_AT_ONCE = 1024
# A server reads what others name: neither a line nor an array may fill its memory.
LONGEST_LINE = 64 << 20
LARGEST_ARRAY = 2 << 30
_BOM = b"\xef\xbb\xbf"


def read_jsonl(path: Path) -> Numbered:
    """The lines of a file, a JSON object each; numbers are lines, counted from 1."""
    for line, text in _lines(path):
        if text.strip():
            yield line, _decoded(text)


def read_json(path: Path) -> Numbered:
    """The objects of one JSON array, numbered from 1; or jsonl, where the file is no array."""
    if not _is_array(path):
        yield from read_jsonl(path)
        return
    rows = _decode_or_fail(path)
    yield from enumerate(cast(list[object], rows), start=1)


def read_csv(path: Path) -> Numbered:
    """The rows under a header, every cell as text; numbers are the lines where rows begin.

    Raises:
        DataError: There is no usable header, or what follows is no csv.
    """
    lines = csv.reader(_csv_text(path), strict=True)
    try:
        header = next((cells for cells in lines if cells), None)
        if header is None:
            return
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise DataError(f"{path}:1: the header names {listed(twice)} twice; rename a column")
        line = lines.line_num + 1
        for cells in lines:
            if cells:
                yield line, _csv_row(header, cells)
            line = lines.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}:{lines.line_num}: is not csv that can be read: {error}; quote cells that hold "
            'quotes (as ""), commas or line ends, and keep very long texts in jsonl or parquet'
        ) from error


def read_parquet(path: Path) -> Numbered:
    """The rows of a parquet file, numbered from 1."""
    import pyarrow.parquet as pq

    with cast(Any, pq).ParquetFile(path) as file:
        yield from _numbered(file.iter_batches(batch_size=ROWS_AT_ONCE))


def read_arrow(path: Path) -> Numbered:
    """The rows of an Arrow file, as a stream (what ``datasets`` writes) or with a footer."""
    import pyarrow as pa

    arrow = cast(Any, pa)
    with arrow.memory_map(str(path)) as file:
        with_footer = file.read(6) == b"ARROW1"
        file.seek(0)
        if with_footer:
            reader = arrow.ipc.open_file(file)
            yield from _numbered(map(reader.get_batch, range(reader.num_record_batches)))
        else:
            yield from _numbered(arrow.ipc.open_stream(file))


READERS: Mapping[str, Callable[[Path], Numbered]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}


def has_lines(path: Path) -> bool:
    """Whether the numbers that :func:`read_file` gives are lines of the file."""
    kind = path.suffix.lower()
    if kind == ".json":
        return not _is_array(path)
    return kind in (".jsonl", ".csv") or kind not in READERS


def read_file(path: Path) -> Numbered:
    """The rows of a file by its name; one of another kind is read as jsonl.

    Raises:
        DataError: It cannot be read as what its name says.
    """
    try:
        yield from READERS.get(path.suffix.lower(), read_jsonl)(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, ArithmeticError) as error:
        if isinstance(error, DataError) or path.suffix.lower() not in (".parquet", ".arrow"):
            raise
        kind = path.suffix.lower().removeprefix(".")
        raise DataError(f"{path}: cannot be read as {kind}: {error}") from error


def _is_array(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4096).removeprefix(_BOM).lstrip().startswith(b"[")


def _numbered(batches: Any) -> Numbered:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS_AT_ONCE):
            for row in batch.slice(start, ROWS_AT_ONCE).to_pylist():
                number += 1
                yield number, row


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    # Only "\n" ends a line of jsonl, as in a binary file: str.splitlines would also cut at U+2028.
    for line, text in _raw_lines(path):
        yield line, text.removesuffix(b"\n")


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """With their ends, without a byte order mark.

    Raises:
        DataError: A line is longer than any row.
    """
    with path.open("rb") as file:
        for line in itertools.count(1):
            text = file.readline(LONGEST_LINE + 1)
            if not text:
                return
            if len(text) > LONGEST_LINE:
                raise DataError(
                    f"{path}:{line}: has more than {LONGEST_LINE >> 20} MiB in one line; allowed: "
                    "one row a line. Check that it is data, or keep it as parquet."
                )
            yield line, text.removeprefix(_BOM) if line == 1 else text


def _decoded(text: bytes) -> object:
    try:
        return json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        return RowError(f"is not UTF-8 (byte {error.start + 1}); save the file as UTF-8")
    except json.JSONDecodeError as error:
        hint = "; each line must be one whole JSON object" if _spans_lines(text) else ""
        return RowError(f"is not JSON: {error.msg} at column {error.colno}{hint}")
    except (RecursionError, ValueError) as error:  # nested too deep; a number of 5000 digits
        return RowError(f"is not JSON that can be read: {error}")


def _spans_lines(text: bytes) -> bool:
    """Whether a broken line looks like a part of an indented JSON document."""
    return text.strip() in (b"[", b"{") or not text.lstrip().startswith(b"{")


def _decode_or_fail(path: Path) -> object:
    if path.stat().st_size > LARGEST_ARRAY:
        raise DataError(
            f"{path}: is one JSON array of more than {LARGEST_ARRAY >> 30} GiB, which has to be "
            "read as a whole; keep its rows as jsonl or parquet."
        )
    data = path.read_bytes()
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: is not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno}"
        raise DataError(f"{place}: is not JSON: {error.msg} at column {error.colno}") from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}: is not JSON that can be read: {error}") from None


def _csv_text(path: Path) -> Iterator[str]:
    # Decoded by the line, so that a byte that is no UTF-8 has a line to be named by.
    for line, data in _raw_lines(path):
        try:
            yield data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}:{line}: is not UTF-8 (byte {error.start + 1}); save the file as UTF-8"
            ) from None


def _csv_row(header: list[str], cells: list[str]) -> object:
    if len(cells) != len(header):
        return RowError(
            f"has {len(cells)} cells, and the header names {len(header)} columns "
            f"({listed(header)}); quote cells that hold commas"
        )
    return dict(zip(header, cells, strict=True))
