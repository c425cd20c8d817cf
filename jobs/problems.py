"""pydantic's errors as :class:`Problem`: with the line, in our words, one for each place."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from pydantic import ValidationError

from lorafusion.errors import Problem
from lorafusion.jobs import aliases
from lorafusion.jobs.describe import Fields
from lorafusion.jobs.fixes import Path, fix_for
from lorafusion.jobs.spellings import ADVICE, HINTS, REFUSED
from lorafusion.jobs.yaml_tree import Node, join

JOB: Path = ("jobs", 0)


def show(node: Node) -> str:
    """What stands at ``node``, short enough for one line."""
    value = node.value
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, tuple):
        return f"a list of {len(value)}" if value else "an empty list"
    if value is None or isinstance(value, bool):
        return {None: "nothing (null)", True: "true", False: "false"}[value]
    text = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
    return f"the text {text}" if isinstance(value, str) else text


@dataclass(frozen=True)
class Translator:
    """Turns the errors of one validated tree into problems.

    Attributes:
        file: The job file.
        fields: What each field allows.
        top: Path of the tree's top in the schema: ``()``, or ``("jobs", 0)`` for the defaults.
        partial: Fields may be missing, as in the defaults.
    """

    file: str
    fields: Fields
    top: Path = ()
    partial: bool = False

    def problems(self, error: ValidationError, tree: Node) -> list[Problem]:
        """All problems behind ``error``, which came from validating ``tree.plain()``."""
        found: list[Problem] = []
        reported: set[Path] = set()
        places: dict[Path, tuple[Node, str]] = {}
        for detail in error.errors(include_url=False):
            loc, kind = detail["loc"], detail["type"]
            if kind in ("missing", "extra_forbidden"):
                if kind == "missing" and self.partial:
                    continue
                node, path = _locate(tree, loc[:-1])
                report = self._missing if kind == "missing" else self._unknown
                found.append(report(node, self._in_schema(path), str(loc[-1])))
                reported.add((*path, loc[-1]))
            else:
                node, path = _locate(tree, loc)
                # Each branch of a union reports on its own: one problem says all that is allowed.
                places.setdefault(path, (node, detail["msg"]))
                reported.add(path)
        for path, (node, message) in places.items():
            # A bad item also makes its list too short, or wrong where a union allows other things.
            if not any(len(r) > len(path) and r[: len(path)] == path for r in reported):
                found.append(self._wrong(node, self._in_schema(path), message))
        return found

    def _in_schema(self, path: Path) -> Path:
        """``path`` from the schema's top; all items of a list are alike there."""
        return self.top + tuple(0 if isinstance(key, int) else key for key in path)

    def _missing(self, parent: Node, path: Path, key: str) -> Problem:
        fix = f"Add `{key}: ...`" + (" here or to `defaults`." if path[:1] == ("jobs",) else ".")
        if key == "name":
            fix = "Add `name: ...`."
        elif key == "jobs":
            fix = "Add `jobs:` with a list, in which each job starts with `- name: ...`."
        allowed = f"{self.fields.allowed((*path, key))} (required)"
        where = join(parent.where, key)
        return Problem(self.file, parent.line, where, "nothing", allowed, fix)

    def _unknown(self, parent: Node, path: Path, key: str) -> Problem:
        child = parent.child(key) or parent
        if path == (*JOB, "adapter") and key in REFUSED:
            found, allowed = f"{key}: {show(child)}", f"no {key}: {REFUSED[key].reason}"
            return Problem(self.file, child.line, child.where, found, allowed, REFUSED[key].fix)
        names = [*self.fields.names(path), *(() if path else ("defaults",))]
        allowed = "the fields " + ", ".join(names)
        found, fix = f"the unknown field {key!r}", self._spelling(path, key, names)
        return Problem(self.file, child.line, child.where, found, allowed, fix)

    def _spelling(self, path: Path, key: str, names: list[str]) -> str:
        if key in ADVICE:
            return ADVICE[key]
        places: list[Path] = [(), JOB, (*JOB, "adapter"), (*JOB, "eval"), (*JOB, "dataset")]
        home = next((place for place in places if key in self.fields.names(place)), None)
        if home is not None and key not in names:
            return f"`{key}` belongs {_under(home)}."
        for table, home in ((aliases.TOP, ()), (aliases.JOB, JOB)):
            if key in table:
                return f"`{key}` belongs {_under(home)}."
        if key in HINTS:
            *parents, name = HINTS[key].split(".")
            home = (*JOB, *parents)
            return f"It is called `{name}` {'here' if home == path else _under(home)}."
        # Ours first: of two names as close, the first is taken.
        others = {(): aliases.TOP, JOB: aliases.JOB}.get(path, {})
        close = difflib.get_close_matches(key, [*names, *others], n=1)
        return f"Did you mean `{close[0]}`?" if close else "Remove it."

    def _wrong(self, node: Node, path: Path, message: str) -> Problem:
        allowed = self.fields.allowed(path) or message
        fix = fix_for(node, path, self.fields) or f"{message}."
        return Problem(self.file, node.line, node.where, show(node), allowed, fix)


def _under(home: Path) -> str:
    if not home:
        return "at the top of the file"
    return f"under `{home[-1]}` of the job" if len(home) > 2 else "in a job or in `defaults`"


def _locate(tree: Node, loc: Path) -> tuple[Node, Path]:
    """The deepest node on ``loc``, and its path; names of union branches in ``loc`` are skipped."""
    node, path = tree, ()
    for key in loc:
        if isinstance(key, int):
            if key < len(node.items()):
                node, path = node.items()[key], (*path, key)
        elif below := node.child(key):
            node, path = below, (*path, key)
    return node, path
