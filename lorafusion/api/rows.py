"""Rows in memory become a file that is named by its content: what is trained on can be told later.

A job resumes only on the same data. Rows of equal content get the same path, so a script that makes
its rows anew can resume; a temporary file would be another dataset at each start.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from lorafusion.errors import JobError, Problem
from lorafusion.files import home, write_bytes_atomic


def is_hugging_face(value: object) -> bool:
    """Whether it is a ``datasets.Dataset``, which holds rows as a list does."""
    datasets = sys.modules.get("datasets")  # whoever has such a value has imported it
    return datasets is not None and isinstance(value, datasets.Dataset)


def write_rows(rows: Iterable[object], *, source: str, argument: str) -> Path:
    """Write rows as jsonl under the cache folder, unless they are there already.

    Args:
        rows: Mappings of what JSON can hold.
        source: The call that they were given to, for errors.
        argument: Its argument.

    Raises:
        JobError: There are none, or one cannot be written as JSON.
    """

    def refuse(where: str, found: str, allowed: str, fix: str) -> JobError:
        return JobError((Problem(source, 0, where, found, allowed, fix),))

    lines: list[bytes] = []
    for index, row in enumerate(rows):
        where = f"{argument}[{index}]"
        if not isinstance(row, Mapping):
            fix = 'Write rows like {"prompt": "...", "completion": "..."}.'
            raise refuse(where, f"a {type(row).__name__}", "a mapping from column to value", fix)
        try:
            lines.append(_line(cast("Mapping[Any, Any]", row)))
        except (TypeError, ValueError, RecursionError) as error:
            allowed = "text, finite numbers, booleans, None, and lists and mappings of these"
            fix = "Convert it, or leave its column out."
            raise refuse(where, f"a row that is no JSON ({error})", allowed, fix) from error
    if not lines:
        raise refuse(argument, "no rows", "at least one row", "Look where the rows come from.")
    return _keep(b"".join(lines))


def _line(row: Mapping[Any, Any]) -> bytes:
    return json.dumps(dict(row), ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _keep(data: bytes) -> Path:
    path = home() / "cache" / "rows" / f"{hashlib.sha256(data).hexdigest()}.jsonl"
    # A file of that name is whole: it was renamed into place.
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(path, data)
    return path
