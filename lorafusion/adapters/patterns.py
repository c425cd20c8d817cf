"""Regexes of users, which are matched with the names of modules: those that may take for ever.

Python's ``re`` tries every way in which repetitions can share a text. Where one stands inside
another these are exponentially many: ``((.+)+)+!`` takes 28 s on ``model.embed_tokens``, and would
hold up a server with everybody's jobs.
"""

from __future__ import annotations

import re

__all__ = ["why_endless"]

MOST = 5
"""Repetitions without an end, one behind the other: on 40 characters 10^6 ways, some 30 ms."""
_COUNTED = re.compile(r"\{(\d*)(,?)(\d*)\}")
_MANY = 10
_SET = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)


def why_endless(pattern: str) -> str | None:
    """Why a regex may take for ever; None where it does not.

    Args:
        pattern: What compiles.
    """
    inside = [False]  # of each open group: whether it can match the same text in several ways
    last = False  # the same of what was read last, which a repetition is about
    at = unbounded = 0
    while at < len(pattern):
        repeat = _repetition(pattern, at)
        if repeat is not None:
            least, most, at = repeat
            if last and most > _MANY:
                return "it repeats what itself repeats or has alternatives"
            unbounded += most > _MANY and least != most
            inside[-1] |= least != most
            last = False
            continue
        char = pattern[at]
        last = False
        if char == "(":
            inside.append(False)
            at += pattern.startswith("(?", at)  # of that, the ? is no repetition
        elif char == ")" and len(inside) > 1:
            last = inside.pop()
            inside[-1] |= last
        elif char == "|":
            inside[-1] = True
        at = _behind(pattern, at)
    if unbounded > MOST:
        return f"it has {unbounded} repetitions without an end, and at most {MOST} are allowed"
    return None


def _behind(pattern: str, at: int) -> int:
    """The index behind one character, or one that is escaped, or a set of them."""
    if pattern[at] == "\\":
        return at + 2
    found = _SET.match(pattern, at) if pattern[at] == "[" else None
    return found.end() if found else at + 1


def _repetition(pattern: str, at: int) -> tuple[int, float, int] | None:
    """Least, most, and the index behind it; None where none stands there."""
    char, counted = pattern[at], _COUNTED.match(pattern, at)
    if char in "*+?":
        least, most, end = int(char == "+"), 1.0 if char == "?" else float("inf"), at + 1
    elif counted and (counted[1] or counted[3]):
        least = int(counted[1] or 0)
        most = float(counted[3] or "inf") if counted[2] else float(least)
        end = counted.end()
    else:
        return None
    return least, most, end + (pattern[end : end + 1] in ("?", "+"))
