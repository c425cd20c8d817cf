"""Tables that the code makes and a page of the docs holds, between two marks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lorafusion.errors import BenchError
from lorafusion.files import write_text_atomic


def put_into(page: Path, name: str, table: str) -> None:
    """Replace what stands between the marks of a name.

    Raises:
        BenchError: The page has no such marks.
    """
    before, _, after = _split(page, name)
    begin, end = marks(name)
    write_text_atomic(page, f"{before}{begin}\n\n{table}\n\n{end}{after}")


def found_in(page: Path, name: str) -> str:
    """What stands between the marks of a name.

    Raises:
        BenchError: The page has no such marks.
    """
    return _split(page, name)[1].strip()


def marks(name: str) -> tuple[str, str]:
    """The lines before and behind a table."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def row(cells: Sequence[str]) -> str:
    """One of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def _split(page: Path, name: str) -> tuple[str, str, str]:
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    begin, end = marks(name)
    before, found, rest = text.partition(begin)
    inside, closed, after = rest.partition(end)
    if not found or not closed:
        raise BenchError(f"{page} has no lines {begin!r} and {end!r} to put the table between")
    return before, inside, after
