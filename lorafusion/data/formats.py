"""What a row of a dataset may look like: a prompt with its completion, or a conversation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, cast

DatasetType = Literal["prompt_completion", "messages"]
ROLES = ("system", "user", "assistant")

COLUMNS: Mapping[DatasetType, tuple[str, ...]] = {
    "prompt_completion": ("prompt", "completion"),
    "messages": ("messages",),
}
"""The columns that a row of each type must have. Others are not read."""


@dataclass(frozen=True, slots=True)
class PromptCompletion:
    """A text to condition on, and the text to learn. They are joined without a space."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; ``role`` is one of :data:`ROLES`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order. At least one is the assistant's, and never the first."""

    messages: tuple[Message, ...]


Row = PromptCompletion | Conversation


class RowError(ValueError):
    """What is wrong with one row; the reader adds the file and the line."""


def detect_type(row: object) -> DatasetType:
    """Find the type by the columns of ``row``.

    Raises:
        RowError: ``row`` is not an object, or has the columns of no type, or of both.
    """
    columns = _as_object(row)
    found: list[DatasetType] = [
        name for name, needed in COLUMNS.items() if all(column in columns for column in needed)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise RowError(
            "has the columns of both types (prompt, completion, messages); "
            "say which one is meant with `type: prompt_completion` or `type: messages`"
        )
    raise RowError(f"has the columns {_names(columns)}; needed: prompt and completion, or messages")


def parse_row(row: object, type_: DatasetType) -> Row:
    """Check one decoded row and return it as ``type_``.

    Raises:
        RowError: A column is missing, or what it holds cannot be trained on.
    """
    columns = _as_object(row)
    missing = [column for column in COLUMNS[type_] if column not in columns]
    if missing:
        raise RowError(
            f"has no column {_names(missing)} (found {_names(columns)}); "
            f"type {type_} needs {_names(COLUMNS[type_])}"
        )
    if type_ == "messages":
        return Conversation(_messages(columns["messages"]))
    return PromptCompletion(
        prompt=_text(columns["prompt"], "prompt"),
        completion=_text(columns["completion"], "completion"),
    )


def _messages(value: object) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise RowError(f"messages is {_kind(value)}; it must be a list of {{role, content}}")
    turns = cast(list[object], value)
    messages = tuple(_message(turn, f"messages[{index}]") for index, turn in enumerate(turns))
    roles = [message.role for message in messages]
    if "assistant" not in roles:
        raise RowError("messages has no assistant turn, so there is nothing to learn")
    if roles[0] == "assistant":
        raise RowError("messages begins with an assistant turn; put a user or system turn first")
    return messages


def _message(value: object, where: str) -> Message:
    if not isinstance(value, dict):
        raise RowError(f"{where} is {_kind(value)}; it must be an object {{role, content}}")
    turn = cast(dict[str, object], value)
    for key in ("role", "content"):
        if key not in turn:
            raise RowError(f"{where} has no {key!r} (found {_names(turn)})")
    # A weight or a tool call that is not obeyed would train something else than was asked for.
    # Exports of tables with mixed rows fill the absent ones with null.
    extra = [key for key in turn if key not in ("role", "content") and turn[key] is not None]
    if extra:
        raise RowError(f"{where} has {_names(extra)}; only role and content are understood")
    role = turn["role"]
    if not isinstance(role, str) or role not in ROLES:
        raise RowError(f"{where}.role is {_short(role)}; allowed: {', '.join(ROLES)}")
    return Message(role, _text(turn["content"], f"{where}.content"))


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"{where} is {_kind(value)}; it must be a string")
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


def _as_object(row: object) -> dict[str, object]:
    if not isinstance(row, dict):
        raise RowError(f"is {_kind(row)}; each line must be one JSON object")
    return cast(dict[str, object], row)


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "an object"


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    shown = ", ".join(listed[:8])
    return (shown + (", ..." if len(listed) > 8 else "")) or "(none)"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
