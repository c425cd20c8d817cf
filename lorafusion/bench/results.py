"""Results of studies: a JSON file for each, and a table of it in a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lorafusion.bench import pages
from lorafusion.errors import BenchError, OutputError
from lorafusion.files import write_text_atomic
from lorafusion.machine import describe_machine, versions

__all__ = ["FORMAT", "file_name", "mark", "put_into", "read", "result", "write"]

FORMAT = 1


def result(study: str, **figures: Any) -> dict[str, Any]:
    """Figures with when and on what they were taken."""
    return {
        "format": FORMAT,
        "study": study,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": versions(),
        **figures,
    }


def file_name(study: str, suffix: str = "json") -> str:
    """Of a study's results in their folder, such as ``scale.json``."""
    return f"{study}.{suffix}"


def mark(study: str) -> str:
    """The name of the marks that a page holds a study's table between."""
    return f"bench: {study}"


def write(found: Mapping[str, Any], folder: Path) -> Path:
    """Write a study's results into a folder, over earlier ones; returns the file.

    Raises:
        OutputError: The folder cannot be written.
    """
    path = folder / file_name(found["study"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text_atomic(path, json.dumps(found, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise OutputError(
            f"output folder {folder} cannot be used: {error.strerror or error}; allowed: a folder "
            "that can be written, or a path where one can be made."
        ) from error
    return path


def read(path: Path) -> dict[str, Any]:
    """Read what :func:`write` wrote.

    Raises:
        BenchError: It is of another version, or no such file.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(f"{path} cannot be read as a benchmark's results: {error}") from error
    if found.get("format") != FORMAT:
        raise BenchError(
            f"{path}: format is {found.get('format')!r}; this version reads format {FORMAT}. "
            "Measure again with this version of lorafusion."
        )
    return found


def put_into(
    page: Path, found: Mapping[str, Any], markdown: Callable[[Mapping[str, Any]], str]
) -> None:
    """Replace the study's table in a page.

    Raises:
        BenchError: The page has no marks for it.
    """
    pages.put_into(page, mark(found["study"]), markdown(found))
