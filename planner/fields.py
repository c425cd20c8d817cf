"""Checked fields of parsed JSON: every refusal says where, what stands there, and what may.

``where`` names the field with what it is a part of, such as ``plan: places[0].kind``.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import cast

from lorafusion.errors import PlanError

__all__ = ["integer", "integers", "items", "mapping", "number", "parse", "text", "wrong"]


def parse(document: str, what: str) -> object:
    """The JSON of ``document``.

    Raises:
        PlanError: It is none. As in all functions here, the message names the field.
    """
    try:
        return json.loads(document)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{what} must be JSON: {error}") from error


def mapping(
    value: object, where: str, names: Collection[str], *, optional: Collection[str] = ()
) -> dict[str, object]:
    """An object that has all of ``names``, and of others no more than ``optional``."""
    fields = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    if not isinstance(value, dict) or not set(names) <= set(fields) <= {*names, *optional}:
        more = f", and at most {', '.join(optional)} beside them" if optional else ""
        allowed = f"an object with exactly the fields {', '.join(names)}{more}"
        raise wrong(where, cast("object", value), allowed)
    return fields


def items(value: object, where: str) -> list[object]:
    """A list of anything."""
    if not isinstance(value, list):
        raise wrong(where, value, "a list")
    return cast("list[object]", value)


def integer(value: object, where: str, *, least: int) -> int:
    """An integer of at least ``least``."""
    # type(), not isinstance: JSON's true is an int to Python.
    if type(value) is not int or value < least:
        raise wrong(where, value, f"an integer of at least {least}")
    return value


def integers(value: object, where: str, *, least: int) -> tuple[int, ...]:
    """A list of them."""
    found = items(value, where)
    # A window of 64 jobs holds 100 thousand: looked at one by one only to name the one at fault.
    if found and (set(map(type, found)) != {int} or min(cast("list[int]", found)) < least):
        for index, item in enumerate(found):
            integer(item, f"{where}[{index}]", least=least)
    return tuple(cast("list[int]", found))


def number(value: object, where: str) -> float:
    """A number; JSON written by Python may hold NaN and infinities."""
    if type(value) not in (int, float):
        raise wrong(where, value, "a number")
    return cast("float", value)


def text(value: object, where: str) -> str:
    """A name that is not empty."""
    if not isinstance(value, str) or not value:
        raise wrong(where, value, "a name that is not empty")
    return value


def wrong(where: str, found: object, allowed: str) -> PlanError:
    """What to raise where ``found`` stands."""
    shown = repr(found)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return PlanError(f"{where} is {shown}; allowed: {allowed}.")
