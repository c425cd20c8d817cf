"""What a row of a dataset may look like, and how it is found and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from lorafusion.jobs.schema import Column, DatasetType, TrainOn

COLUMNS: Mapping[DatasetType, tuple[Column, ...]] = {
    "text": ("text",),
    "prompt_completion": ("prompt", "completion"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
}
"""The columns that a row of each type must have."""

OPTIONAL: Mapping[DatasetType, tuple[Column, ...]] = {
    "text": (),
    "prompt_completion": (),
    "messages": (),
    "sharegpt": ("system",),
    "alpaca": ("input", "system", "history"),
}
"""The columns that are read where a row has them. Others are not read."""

KEYS: Mapping[DatasetType, tuple[Column, ...]] = {
    "text": (),
    "prompt_completion": ("role", "content"),
    "messages": ("role", "content"),
    "sharegpt": ("from", "value"),
    "alpaca": (),
}
"""The keys of a turn, which ``columns`` may rename too."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text of which every token is learnt."""

    text: str


@dataclass(frozen=True, slots=True)
class PromptCompletion:
    """A text to condition on, and the text to learn. They are joined without a space."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; ``role`` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order, of which at least one from ``learn_from`` on is the assistant's."""

    messages: tuple[Message, ...]
    learn_from: int = 0
    """Assistant turns before this one are context, not answers to learn."""


Row = Text | PromptCompletion | Conversation


class RowError(ValueError):
    """What is wrong with one row; the reader adds the file and the line."""


@dataclass(frozen=True)
class Names:
    """What the rows call our columns and keys: ``columns`` of the job file."""

    theirs: Mapping[Column, str]

    def __call__(self, ours: Column) -> str:
        """Their name of ours."""
        return self.theirs.get(ours, ours)

    def all(self, ours: Iterable[Column]) -> tuple[str, ...]:
        """Their name of each of ``ours``."""
        return tuple(map(self, ours))


def detect_type(row: object, names: Names) -> DatasetType:
    """Find the type by the columns of ``row``. ``text`` gives way to any other that fits.

    Raises:
        RowError: ``row`` is not an object, or has the columns of no type, or of several.
    """
    columns = as_object(row)
    fits: list[DatasetType] = [
        type_
        for type_, needed in COLUMNS.items()
        if all(column in columns for column in names.all(needed))
    ]
    # A column `text` beside those of another type mostly repeats them, as in Stanford's Alpaca.
    found: list[DatasetType] = [type_ for type_ in fits if type_ != "text"] or fits
    if len(found) == 1:
        return found[0]
    if found:
        raise RowError(
            f"has the columns of several types ({listed(found)}); say which one is meant, "
            f"such as `type: {found[0]}`"
        )
    needs = "; or ".join(" and ".join(names.all(needed)) for needed in COLUMNS.values())
    raise RowError(
        f"has the columns {listed(columns)}; needed: {needs}. "
        "Other names can be mapped, such as `columns: {prompt: question, completion: answer}`"
    )


def describe_trained(type_: DatasetType, train_on: TrainOn) -> str:
    """What of a row is trained, in words."""
    if type_ == "text" or train_on == "all":
        return "every token"
    if type_ == "prompt_completion":
        return "completions"
    return "last answers" if train_on == "last" else "answers"


def check_columns(columns: Mapping[str, object], type_: DatasetType, names: Names) -> None:
    """Refuse a row that lacks a column of ``type_``.

    Raises:
        RowError: Naming the columns that are missing and those that there are.
    """
    needed = names.all(COLUMNS[type_])
    missing = [column for column in needed if column not in columns]
    if missing:
        raise RowError(
            f"has no column {listed(missing)} (found {listed(columns)}); "
            f"type {type_} needs {listed(needed)}"
        )
    # A name that was written out is meant, also where the column could be left out.
    for ours in OPTIONAL[type_]:
        if ours in names.theirs and names(ours) not in columns:
            raise RowError(
                f"has no column {names(ours)}, which `columns` gives for {ours} "
                f"(found {listed(columns)})"
            )


def text_of(value: object, where: str) -> str:
    """``value`` if it is text that is not blank.

    Raises:
        RowError: It is something else; ``where`` names the field.
    """
    if not isinstance(value, str):
        raise RowError(f"{where} is {kind(value)}; it must be a string")
    if not value.strip():
        raise RowError(f"{where} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(
            f"{where} holds half of a surrogate pair at character {error.start}, "
            "which no text can contain"
        ) from None
    return value


def optional_text(columns: Mapping[str, object], name: str) -> str:
    """The text of a column that may be absent, null or blank, which all give an empty string."""
    value = columns.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    return text_of(value, name)


def as_object(row: object) -> dict[str, object]:
    """``row`` if it is a mapping of columns.

    Raises:
        RowError: It is something else.
    """
    if not isinstance(row, dict):
        raise RowError(f"is {kind(row)}; each line must be one JSON object")
    return cast(dict[str, object], row)


def kind(value: object) -> str:
    """What ``value`` is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    name = type(value).__name__
    words = {"str": "a string", "list": "a list", "dict": "an object", "bytes": "binary data"}
    return words.get(name, f"of type {name}")


def listed(names: Iterable[str]) -> str:
    """Up to eight names in a row."""
    every = list(names)
    shown = ", ".join(every[:8])
    return (shown + (", ..." if len(every) > 8 else "")) or "(none)"


def short(value: object) -> str:
    """``value`` as code, cut to one line."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
