"""The checked rows of a dataset, in a stream. A bad row is an error with its place, never skipped.

Rows are read as they are asked for, so that a large dataset is never in memory as Python objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from lorafusion.data.formats import (
    COLUMNS,
    KEYS,
    OPTIONAL,
    Names,
    Row,
    RowError,
    detect_type,
    listed,
)
from lorafusion.data.parse import parse_row
from lorafusion.data.sources import Part, Source, open_source
from lorafusion.errors import DataError
from lorafusion.jobs.schema import DatasetConfig, DatasetType

ROWS_SHOWN = 10
MOST_ROWS = 50_000_000
"""Of a dataset, whose tokens are held in memory."""


class PlacedRow(NamedTuple):
    """A checked row, and where it stands."""

    row: Row
    part: Part
    number: int

    @property
    def place(self) -> str:
        """How errors name the row."""
        return self.part.place(self.number)


@dataclass(frozen=True)
class Rows:
    """The checked rows of one dataset, read again by each iteration.

    Attributes:
        source: Where they are.
        type: The resolved type.
        names: What they call our columns.
        chat: Whether there is a chat template for them.
    """

    source: Source
    type: DatasetType
    names: Names
    chat: bool

    def __iter__(self) -> Iterator[PlacedRow]:
        """Every row, in order.

        Raises:
            DataError: After the rows before the first bad one. All of them are looked at; the
                message lists the first ten with place and reason, and how many there are.
        """
        bad: list[str] = []
        total = 0
        for part, number, raw in self.source.rows():
            total += 1
            if total > MOST_ROWS:
                raise DataError(
                    f"{part.place(number)}: is one more than the {MOST_ROWS:,} rows that a dataset "
                    "may have; train on a part of it."
                )
            try:
                row = self._checked(raw)
            except RowError as error:
                bad.append(f"{part.place(number)}: {error}" if len(bad) < ROWS_SHOWN else "")
                continue
            if not bad:
                yield PlacedRow(row, part, number)
        if bad:
            raise DataError(_describe(self.source.name, bad, total))

    def _checked(self, raw: object) -> Row:
        if isinstance(raw, RowError):
            raise raw
        return parse_row(raw, self.type, self.names, chat=self.chat)


def read_rows(config: DatasetConfig, *, chat: bool = True) -> Rows:
    """Open a dataset and find its type. Iterating over the result reads and checks its rows.

    Args:
        config: Where the rows are and how they are to be read.
        chat: Whether there is a chat template. Without one alpaca rows become plain text.

    Raises:
        DataError: It cannot be read, holds no row, does not show its type, or the settings of
            ``config`` do not fit that type.
    """
    source = open_source(config)
    names = Names(config.columns)
    first = next(source.rows(), None)
    if first is None:
        raise DataError(f"{source.name}: has no rows; a dataset needs at least one")
    type_ = config.type or _detect(first, names)
    _check_settings(config, type_, source.name)
    return Rows(source, type_, names, chat)


def _detect(first: tuple[Part, int, object], names: Names) -> DatasetType:
    part, number, raw = first
    try:
        if isinstance(raw, RowError):
            raise raw
        return detect_type(raw, names)
    except RowError as error:
        raise DataError(f"{part.place(number)}: {error}") from None


def _check_settings(config: DatasetConfig, type_: DatasetType, name: str) -> None:
    known = (*COLUMNS[type_], *OPTIONAL[type_], *KEYS[type_])
    unused = [column for column in config.columns if column not in known]
    if unused:
        raise DataError(
            f"{name}: its rows are of type {type_}, which has no {listed(unused)} for `columns` "
            f"to rename; it has {listed(known)}"
        )
    if type_ == "text" and config.train_on == "last":
        raise DataError(
            f"{name}: its rows are of type text, which has no turns for `train_on: last` to choose "
            "from; every token is trained, so remove train_on"
        )


def _describe(name: str, bad: list[str], total: int) -> str:
    shown = bad[:ROWS_SHOWN]
    if len(bad) > ROWS_SHOWN:
        shown.append(f"... and {len(bad) - ROWS_SHOWN} more")
    return "\n".join([f"{name}: {len(bad)} of {total} rows cannot be used", *shown])
