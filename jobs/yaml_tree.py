"""YAML as a tree that knows its lines. Plain data only: nothing in the file can build an object.

Scalars follow YAML 1.2's core rules: ``1e-4`` is a number (1.1 reads text), ``010`` is ten, and
``yes``, ``off``, ``1:30`` and dates are text, as editors show them.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import yaml

from lorafusion.errors import Problem

Scalar = str | int | float | bool | None

MAX_BYTES = 1 << 20
# The schema is 4 deep. The limit keeps `[[[[...` off Python's stack.
MAX_DEPTH = 32
# Aliases can repeat an anchor's content; 9 levels of 9 would give 4e8 nodes from 300 bytes.
MAX_NODES = 200_000


@dataclass(frozen=True)
class Node:
    """A value of the file.

    Attributes:
        value: A scalar, a mapping of nodes or a tuple of nodes.
        line: Line of its key, or of the value itself where there is none; counted from 1.
        where: Its path, such as ``jobs[1].adapter.r``; empty at the top.
    """

    value: Scalar | dict[str, Node] | tuple[Node, ...]
    line: int
    where: str

    def child(self, key: str) -> Node | None:
        """The entry ``key``, or None where there is none (or this is no mapping)."""
        return self.value.get(key) if isinstance(self.value, dict) else None

    def items(self) -> tuple[Node, ...]:
        """The items of a list, nothing for all else."""
        return self.value if isinstance(self.value, tuple) else ()

    def plain(self) -> object:
        """The same as dicts, tuples and scalars."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, tuple):
            return tuple(child.plain() for child in self.value)
        return self.value

    def walk(self) -> Iterator[Node]:
        """This node and all below it."""
        yield self
        below = self.value.values() if isinstance(self.value, dict) else self.items()
        for child in below:
            yield from child.walk()


def join(where: str, key: str | int) -> str:
    """``where`` extended by a field's name or an item's index."""
    if isinstance(key, int):
        return f"{where}[{key}]"
    if not key.isprintable():  # a newline or half a surrogate pair would spoil the report
        key = repr(key)
    return f"{where}.{key}" if where else key


class TreeError(Exception):
    """The text gives no tree at all. Carries the one problem that was met."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class _TooDeep(yaml.MarkedYAMLError):
    pass


class _Loader(yaml.SafeLoader):
    """Composes nodes, up to a depth; never constructs."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _TooDeep(
                problem="nested too deeply", problem_mark=cast(Any, self).peek_event().start_mark
            )
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


_CORE = {
    "null": (r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    "int": (r"^[-+]?[0-9]+$", list("-+0123456789")),
    "float": (
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.?[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?i:inf)|\.(?i:nan))$",
        list("-+.0123456789"),
    ),
}
_Loader.yaml_implicit_resolvers = {}  # else it starts with SafeLoader's YAML 1.1 rules
for _name, (_pattern, _first) in _CORE.items():
    cast(Any, _Loader).add_implicit_resolver(
        f"tag:yaml.org,2002:{_name}", re.compile(_pattern), _first
    )


def parse(text: str, file: str) -> tuple[Node | None, list[Problem]]:
    """Parse ``text``; ``file`` only names it in problems.

    Returns:
        The tree (None: the text holds nothing) and the problems inside it, such as double keys.

    Raises:
        TreeError: The text is no YAML, or too large to be a job file.
    """
    builder = _Builder(file, _Lines(text))
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
        finally:
            cast(Any, loader).dispose()
    except yaml.YAMLError as error:
        raise TreeError(_syntax_problem(error, builder.lines, file)) from error
    if root is None:
        return None, []
    return builder.build(root, builder.lines.at(root.start_mark), "", 0), builder.problems


class _Lines:
    """Lines as editors count them; YAML 1.1 also ends one at U+0085, U+2028 and U+2029."""

    def __init__(self, text: str) -> None:
        self._starts = [match.end() for match in re.finditer(r"\r\n?|\n", text)]

    def at(self, place: yaml.Mark | int) -> int:
        """The line, from 1, of a mark or an index of the text."""
        index = place if isinstance(place, int) else place.index
        return bisect.bisect_right(self._starts, index) + 1


class _Builder:
    """Turns yaml nodes into :class:`Node`, collecting problems on the way."""

    def __init__(self, file: str, lines: _Lines) -> None:
        self.file = file
        self.lines = lines
        self.problems: list[Problem] = []
        self.nodes = 0

    def build(self, node: yaml.Node, line: int, where: str, depth: int) -> Node:
        """``node`` and all below it; ``line`` is its key's."""
        self.nodes += 1
        if depth > MAX_DEPTH or self.nodes > MAX_NODES:
            raise TreeError(
                Problem(
                    self.file,
                    line,
                    where,
                    "aliases that repeat or contain themselves without end",
                    f"at most {MAX_NODES} values and {MAX_DEPTH} levels",
                    "Write the values out, or share them through `defaults`.",
                )
            )
        tag = node.tag.removeprefix("tag:yaml.org,2002:")
        if isinstance(node, yaml.MappingNode) and tag == "map":
            return Node(self._mapping(node, where, depth), line, where)
        if isinstance(node, yaml.SequenceNode) and tag == "seq":
            children = tuple(
                self.build(item, self.lines.at(item.start_mark), join(where, index), depth + 1)
                for index, item in enumerate(node.value)
            )
            return Node(children, line, where)
        if isinstance(node, yaml.ScalarNode) and tag in ("str", *_CORE):
            return Node(self._scalar(node.value, tag, line, where), line, where)
        self._add(
            line,
            where,
            f"the tag {node.tag}",
            "text, numbers, true, false, null, lists and mappings",
            "Remove the tag.",
        )
        return Node(None, line, where)

    def _mapping(self, node: yaml.MappingNode, where: str, depth: int) -> dict[str, Node]:
        children: dict[str, Node] = {}
        for key, value in node.value:
            line = self.lines.at(key.start_mark)
            if not isinstance(key, yaml.ScalarNode):
                self._add(
                    line, where, "a key that is a list or mapping", "text", "Give the field's name."
                )
                continue
            name = key.value
            path = join(where, name)
            if name in children:
                self._add(
                    line,
                    path,
                    f"the key {name!r} again (first on line {children[name].line})",
                    "each key once",
                    f"Remove line {line} or line {children[name].line}.",
                )
                continue
            children[name] = self.build(value, line, path, depth + 1)
        return children

    def _scalar(self, text: str, tag: str, line: int, where: str) -> Scalar:
        if tag == "str":
            return text
        if not re.match(_CORE[tag][0], text):
            self._add(line, where, f"{text!r} with the tag !!{tag}", f"a {tag}", "Remove the tag.")
            return None
        if tag == "null":
            return None
        if tag == "bool":
            return text.lower() == "true"
        # int() refuses thousands of digits; no field takes numbers beyond 64 bits anyway.
        if tag == "int" and len(text) < 40:
            return int(text)
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))

    def _add(self, line: int, where: str, found: str, allowed: str, fix: str) -> None:
        self.problems.append(Problem(self.file, line, where, found, allowed, fix))


def _syntax_problem(error: yaml.YAMLError, lines: _Lines, file: str) -> Problem:
    if isinstance(error, yaml.reader.ReaderError):
        line = lines.at(error.position)
        return Problem(
            file,
            line,
            "",
            f"a control character (code {error.character})",
            "text",
            "Remove the character.",
        )
    if isinstance(error, _TooDeep) and error.problem_mark:
        return Problem(
            file,
            lines.at(error.problem_mark),
            "",
            "brackets or blocks nested too deeply",
            f"at most {MAX_DEPTH} levels",
            "A job file needs 4.",
        )
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    said = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error)
    if said == "but found another document":
        fix = "Remove the `---` line and write one file for each run."
    elif said and "'\\t'" in said:
        fix = "Indent with spaces, not tabs."
    else:
        fix = "Mend the indentation, quotes or brackets here or on the line before."
    return Problem(
        file, lines.at(mark) if mark else 1, "", f"broken YAML: {said}", "one YAML document", fix
    )
