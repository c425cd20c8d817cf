"""Which of our fields a mapping gives values to, by whatever names; the tree made of that."""

from __future__ import annotations

import re

from lorafusion.errors import Problem
from lorafusion.jobs.yaml_tree import Node, join

Path = tuple[str, ...]


_JOB = re.compile(r"^(jobs\[\d+\]|defaults)\.")


class Notes:
    """What was taken as what: a text each, with all the lines it holds for."""

    def __init__(self) -> None:
        self._lines: dict[str, list[int]] = {}

    def add(self, text: str, *nodes: Node) -> None:
        """Note ``text`` about ``nodes``."""
        self._lines.setdefault(text, []).extend(node.line for node in nodes)

    def texts(self) -> tuple[str, ...]:
        """The notes in the order of their first lines, each with its lines."""
        by_line = sorted(self._lines.items(), key=lambda entry: min(entry[1]))
        return tuple(f"{_lines(lines)}: {text}" for text, lines in by_line)


def _lines(lines: list[int]) -> str:
    known = sorted(set(lines))
    if len(known) == 1:
        return f"line {known[0]}"
    if len(known) > 4:
        return f"lines {', '.join(map(str, known[:3]))} and {len(known) - 3} more"
    return f"lines {', '.join(map(str, known[:-1]))} and {known[-1]}"


class Claims:
    """The values that a mapping gives to our fields; two for one field join ``problems``."""

    def __init__(self, file: str, top: Node, problems: list[Problem]) -> None:
        self._file = file
        self._top = top
        self._leaves: dict[Path, Node] = {}
        self._mappings: dict[Path, Node] = {}
        self._problems = problems

    def leaf(self, path: Path, node: Node) -> None:
        """``node`` is the value of the field at ``path``."""
        self._put(self._leaves, path, node)

    def mapping(self, path: Path, node: Node) -> bool:
        """``node`` is the mapping at ``path``; whether its entries may be claimed one by one."""
        return self._put(self._mappings, path, node)

    def get(self, path: Path) -> Node | None:
        """What was claimed for the field at ``path``."""
        return self._leaves.get(path)

    def take(self, path: Path) -> Node | None:
        """The same, and it is no claim any more."""
        return self._leaves.pop(path, None)

    def tree(self) -> Node:
        """The mapping in our words. Each node keeps its line and the name that the user gave it."""
        nodes = {(): Node({}, self._top.line, self._top.where)}
        nodes |= {path: Node({}, node.line, node.where) for path, node in self._mappings.items()}
        nodes |= self._leaves
        for path, node in list(nodes.items()):
            for depth in range(1, len(path)):
                where = join(self._top.where, ".".join(path[:depth]))
                nodes.setdefault(path[:depth], Node({}, node.line, where))
        for path, node in nodes.items():
            around = nodes[path[:-1]].value
            # Where a single value stands in a mapping's place, its fields have no place.
            if path and isinstance(around, dict) and path[:-1] not in self._leaves:
                around[path[-1]] = node
        return nodes[()]

    def _put(self, table: dict[Path, Node], path: Path, node: Node) -> bool:
        first = table.get(path) or self._leaves.get(path) or self._mappings.get(path)
        if first is None:
            table[path] = node
        else:
            self._conflict(first, node)
        return first is None

    def _conflict(self, first: Node, second: Node) -> None:
        """Both give one field a value, or exclude each other."""
        later, earlier = (second, first) if second.line >= first.line else (first, second)
        names = f"`{spelled(earlier)}`", f"`{spelled(later)}`"
        found = f"{names[1]} beside {names[0]} (line {earlier.line}), for the same field"
        fix = f"Remove line {earlier.line} or line {later.line}."
        if earlier.line == later.line:
            fix = f"Remove {names[0]} or {names[1]}."
        self._problems.append(
            Problem(self._file, later.line, later.where, found, "one of the two", fix)
        )


def spelled(node: Node) -> str:
    """What the user called it, without the job it stands in."""
    return _JOB.sub("", node.where)
