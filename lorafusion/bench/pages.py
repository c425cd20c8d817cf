"""Tables that the code makes and a page of the docs holds, between two marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorafusion.errors import BenchError
from lorafusion.files import write_bytes_atomic, write_text_atomic


def put_into(page: Path, name: str, table: str) -> None:
    """Replace what stands between the marks of a name.

    Raises:
        BenchError: The page has no such marks.
    """
    before, _, after = _split(page, name)
    begin, end = marks(name)
    write_text_atomic(page, f"{before}{begin}\n\n{table}\n\n{end}{after}")


def keep_beside(page: Path, folder: Path, names: Sequence[str]) -> None:
    """Copy what a table was made from into a folder beside the page that has the page's name."""
    target = page.with_suffix("")
    target.mkdir(exist_ok=True)
    for name in names:
        write_bytes_atomic(target / name, (folder / name).read_bytes())


def found_in(page: Path, name: str) -> str:
    """What stands between the marks of a name.

    Raises:
        BenchError: The page has no such marks.
    """
    return _split(page, name)[1].strip()


def marks(name: str) -> tuple[str, str]:
    """The lines before and behind a table."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def shown_base(base_model: str) -> str:
    """A hub id as it is, of a folder its name: where it lies is of no interest elsewhere."""
    return Path(base_model).name if Path(base_model).exists() else base_model


def row(cells: Sequence[str]) -> str:
    """One of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def measured_on(result: Mapping[str, Any], more: str) -> str:
    """A line that says when and on what."""
    machine, versions = result["machine"], result["versions"]
    return f"{result['started'][:10]}, {machine['cpu']}, Python {versions['python']}; {more}."


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """The lines of a Markdown table; columns after the first ``left`` are numbers."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return [row(head), row(rule), *map(row, rows)]


def _split(page: Path, name: str) -> tuple[str, str, str]:
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    begin, end = marks(name)
    before, found, rest = text.partition(begin)
    inside, closed, after = rest.partition(end)
    if not found or not closed:
        raise BenchError(f"{page} has no lines {begin!r} and {end!r} to put the table between")
    return before, inside, after
