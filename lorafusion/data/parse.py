"""One decoded row -> a checked :data:`~lorafusion.data.formats.Row`, by the type of its dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from lorafusion.data.formats import (
    Conversation,
    Message,
    Names,
    PromptCompletion,
    Row,
    RowError,
    Text,
    as_object,
    check_columns,
    kind,
    listed,
    optional_text,
    short,
    text_of,
)
from lorafusion.jobs.schema import Column, DatasetType

ROLES = {role: role for role in ("system", "user", "assistant")}
SHAREGPT_ROLES = {**ROLES, "human": "user", "gpt": "assistant"}
TOOL_ROLES = ("tool", "function", "function_call", "observation", "function_response", "ipython")

Columns = Mapping[str, object]


def parse_row(row: object, type_: DatasetType, names: Names, *, chat: bool = True) -> Row:
    """Check one decoded row and return it as ``type_``.

    Args:
        row: The row as JSON.
        type_: What it is.
        names: What it calls our columns.
        chat: Whether there is a chat template. Without one an alpaca row becomes plain text.

    Raises:
        RowError: A column is missing, or what it holds cannot be trained on.
    """
    columns = as_object(row)
    check_columns(columns, type_, names)
    if type_ == "alpaca":
        return _alpaca(columns, names, chat=chat)
    return _PARSERS[type_](columns, names)


def _text(columns: Columns, names: Names) -> Text:
    name = names("text")
    return Text(text_of(columns[name], name))


def _prompt_completion(columns: Columns, names: Names) -> PromptCompletion | Conversation:
    prompt, completion = names.all(("prompt", "completion"))
    if isinstance(columns[prompt], list) and isinstance(columns[completion], list):
        asked = _turns(columns[prompt], prompt, names, keys=("role", "content"))
        answers = _turns(columns[completion], completion, names, keys=("role", "content"))
        if not asked:
            raise RowError(f"{prompt} is an empty list; put a user turn into it")
        if not any(turn.role == "assistant" for turn in answers):
            raise RowError(f"{completion} has no assistant turn, so there is nothing to learn")
        return Conversation((*asked, *answers), learn_from=len(asked))
    return PromptCompletion(
        prompt=text_of(columns[prompt], prompt),
        completion=text_of(columns[completion], completion),
    )


def _messages(columns: Columns, names: Names) -> Conversation:
    _no_tools(columns)
    name = names("messages")
    return _conversation(_turns(columns[name], name, names, keys=("role", "content")), name)


def _sharegpt(columns: Columns, names: Names) -> Conversation:
    _no_tools(columns)
    name = names("conversations")
    turns = _turns(columns[name], name, names, keys=("from", "value"), roles=SHAREGPT_ROLES)
    system = optional_text(columns, names("system"))
    if system and turns and turns[0].role == "system":
        raise RowError(
            f"has a system prompt twice: in {names('system')} and in {name}[0]; remove one"
        )
    first = (Message("system", system),) if system else ()
    return _conversation((*first, *turns), name)


def _alpaca(columns: Columns, names: Names, *, chat: bool) -> PromptCompletion | Conversation:
    instruction, output = (
        text_of(columns[name], name) for name in names.all(("instruction", "output"))
    )
    added = optional_text(columns, names("input"))
    system = optional_text(columns, names("system"))
    history = _history(columns.get(names("history")), names("history"))
    if not chat:
        if system or history:
            name = names("system" if system else "history")
            raise RowError(
                f"{name} needs a chat template, and the tokenizer of the base has none; "
                "name a jinja file in `chat_template`, or remove the column"
            )
        parts = [f"### Instruction:\n{instruction}"]
        parts += [f"### Input:\n{added}"] if added else []
        return PromptCompletion("\n\n".join([*parts, "### Response:\n"]), output)
    turns = [Message("system", system)] if system else []
    question = f"{instruction}\n\n{added}" if added else instruction
    turns += [*history, Message("user", question), Message("assistant", output)]
    return Conversation(tuple(turns))


def _history(value: object, name: str) -> list[Message]:
    """Earlier rounds, each a list of two: what was asked and what was answered."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise RowError(f"{name} is {kind(value)}; it must be a list of [question, answer]")
    turns: list[Message] = []
    for index, entry in enumerate(cast(list[object], value)):
        where = f"{name}[{index}]"
        pair = cast(list[object], entry) if isinstance(entry, list) else []
        if len(pair) != 2:
            raise RowError(f"{where} must be a list of two texts, [question, answer]")
        turns.append(Message("user", text_of(pair[0], f"{where}[0]")))
        turns.append(Message("assistant", text_of(pair[1], f"{where}[1]")))
    return turns


def _conversation(messages: tuple[Message, ...], name: str) -> Conversation:
    """The turns, if one of them can be learnt.

    An assistant turn that begins the conversation (a greeting) answers nothing, so it is context.
    """
    roles = [message.role for message in messages]
    if "assistant" not in roles:
        raise RowError(f"{name} has no assistant turn, so there is nothing to learn")
    greeting = roles[0] == "assistant"
    if greeting and "assistant" not in roles[1:]:
        raise RowError(
            f"{name} begins with an assistant turn, which answers nothing, and has no other; "
            "put a user turn first"
        )
    return Conversation(messages, learn_from=int(greeting))


def _turns(
    value: object,
    name: str,
    names: Names,
    *,
    keys: tuple[Column, Column],
    roles: Mapping[str, str] = ROLES,
) -> tuple[Message, ...]:
    role, content = names.all(keys)
    if not isinstance(value, list):
        hint = "; a csv cell cannot hold one, jsonl and parquet can" * isinstance(value, str)
        raise RowError(f"{name} is {kind(value)}; it must be a list of {{{role}, {content}}}{hint}")
    turns = cast(list[object], value)
    return tuple(
        _turn(turn, f"{name}[{index}]", (role, content), roles) for index, turn in enumerate(turns)
    )


def _turn(value: object, where: str, keys: tuple[str, str], roles: Mapping[str, str]) -> Message:
    if not isinstance(value, dict):
        raise RowError(f"{where} is {kind(value)}; it must be an object {{{', '.join(keys)}}}")
    turn = cast(dict[str, object], value)
    for key in keys:
        if key not in turn:
            raise RowError(
                f"{where} has no {key!r} (found {listed(turn)}){_other_keys(turn, where)}"
            )
    # A weight or a tool call that is not obeyed would train something else than was asked for.
    # Exports of tables with mixed rows fill the absent ones with null.
    extra = [key for key in turn if key not in keys and turn[key] is not None]
    if extra:
        raise RowError(f"{where} has {listed(extra)}; only {keys[0]} and {keys[1]} are understood")
    role = turn[keys[0]]
    if not isinstance(role, str) or role not in roles:
        reason = "; tool calls cannot be trained: leave such rows out" * (role in TOOL_ROLES)
        raise RowError(f"{where}.{keys[0]} is {short(role)}; allowed: {', '.join(roles)}{reason}")
    return Message(roles[role], text_of(turn[keys[1]], f"{where}.{keys[1]}"))


def _other_keys(turn: Mapping[str, object], where: str) -> str:
    """How to read turns that have the keys of the other format."""
    column = where.partition("[")[0]
    if "from" in turn and "value" in turn:
        return f"; write `type: sharegpt` and `columns: {{conversations: {column}}}` for such turns"
    if "role" in turn and "content" in turn:
        return f"; write `type: messages` and `columns: {{messages: {column}}}` for such turns"
    return ""


def _no_tools(columns: Columns) -> None:
    # The template would show the tools to the model: without them another prompt is learnt.
    if columns.get("tools") not in (None, "", "[]", []):
        raise RowError(
            "has tools, and tool calls cannot be trained: leave such rows out, or remove the column"
        )


_PARSERS: Mapping[DatasetType, Callable[[Columns, Names], Row]] = {
    "text": _text,
    "prompt_completion": _prompt_completion,
    "messages": _messages,
    "sharegpt": _sharegpt,
}
