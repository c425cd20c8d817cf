"""Other tools' words turned into ours, once, before anything else looks at the tree.

Nodes keep the line and the name under which the user wrote them, so that all later problems point
there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from pydantic import BaseModel

from lorafusion.adapters.registry import METHODS
from lorafusion.errors import Problem
from lorafusion.jobs import aliases
from lorafusion.jobs.aliases import (
    ACCUMULATION,
    FOREIGN_MAPPINGS,
    PER_DEVICE,
    REFUSED_VALUES,
    SHARES,
    VALUES,
    Alias,
    lookup,
)
from lorafusion.jobs.batch_fields import BatchFields, BatchTranslator
from lorafusion.jobs.claims import Claims, Notes, Path, spelled
from lorafusion.jobs.problems import show
from lorafusion.jobs.schema import DatasetConfig, EvalConfig, JobSpec, RunSpec
from lorafusion.jobs.settings import SETTINGS, Setting
from lorafusion.jobs.yaml_tree import Node, Scalar


@dataclass(frozen=True)
class Normal:
    """A tree in our words, what was wrong with the others, and what was taken as what."""

    tree: Node
    problems: list[Problem]
    notes: tuple[str, ...]


def normalise(root: Node, file: str) -> Normal:
    """``root``, the tree of a whole file, in our words."""
    return _Normaliser(file).run(root)


class _Normaliser:
    def __init__(self, file: str) -> None:
        self._file = file
        self._notes = Notes()
        self._batches = BatchTranslator(file, self._notes)
        self._problems: list[Problem] = []

    def run(self, root: Node) -> Normal:
        top = self._claims(_TOP, root)
        defaults, jobs = root.child("defaults"), root.child("jobs")
        inherited = BatchFields()
        if defaults is not None and isinstance(defaults.value, dict):
            claims = self._claims(_JOB, defaults)
            inherited = self._batches.defaults(claims)
            defaults = claims.tree()
        if jobs is not None and isinstance(jobs.value, tuple):
            jobs = replace(jobs, value=tuple(self._job(job, inherited) for job in jobs.value))
        for key, node in (("defaults", defaults), ("jobs", jobs)):
            if node is not None:
                top.leaf((key,), node)
        found = self._problems + self._batches.problems
        return Normal(top.tree(), found, self._notes.texts())

    def _job(self, job: Node, inherited: BatchFields) -> Node:
        if not isinstance(job.value, dict):
            return job
        claims = self._claims(_JOB, job)
        self._batches.job(claims, inherited)
        return claims.tree()

    def _claims(self, scope: _Scope, node: Node) -> Claims:
        reader = _Reader(self._file, scope, self._notes, self._problems)
        return reader.read(node)


@dataclass(frozen=True)
class _Scope:
    """The names that a mapping may hold.

    Attributes:
        fields: Paths of our own fields.
        mappings: Paths of our own mappings.
        aliases: Other tools' names of our fields.
    """

    fields: frozenset[Path]
    mappings: frozenset[Path]
    aliases: Mapping[str, Alias]


def _job_scope() -> _Scope:
    adapters = [method.config for method in METHODS.values()]
    inner: dict[Path, list[type[BaseModel]]] = {
        ("dataset",): [DatasetConfig],
        ("adapter",): [*adapters],
        ("eval",): [EvalConfig],
        ("eval", "dataset"): [DatasetConfig],
        ("dataset", "columns"): [],  # any name
        ("eval", "dataset", "columns"): [],
    }
    fields = {
        (*path, name) for path, kinds in inner.items() for k in kinds for name in k.model_fields
    }
    fields |= {(name,) for name in JobSpec.model_fields}
    return _Scope(frozenset(fields), frozenset(inner), aliases.JOB)


_TOP = _Scope(frozenset((name,) for name in RunSpec.model_fields), frozenset(), aliases.TOP)
_JOB = _job_scope()


@dataclass(frozen=True)
class _Reader:
    """Reads one mapping of the file: which of our fields it gives values to."""

    file: str
    scope: _Scope
    notes: Notes
    problems: list[Problem]

    def read(self, top: Node) -> Claims:
        """The claims of ``top``; what is wrong with them joins ``problems``."""
        claims = Claims(self.file, top, self.problems)
        for key, node in top.value.items() if isinstance(top.value, dict) else ():
            if self.scope is not _TOP or key not in ("defaults", "jobs"):
                self._entry(claims, (key,), node)
        return claims

    def _entry(self, claims: Claims, path: Path, node: Node) -> None:
        name = ".".join(path)
        alias, setting = self._alias(path), SETTINGS.get(name)
        if path in self.scope.fields:
            self._field(claims, path, node)
        elif alias is not None:
            self._aliased(claims, alias, path, node)
        elif name in FOREIGN_MAPPINGS and isinstance(node.value, dict):
            for key, child in node.value.items():
                self._entry(claims, (*path, key), child)
        elif setting is not None:
            self._left_out(setting, path, node)
        elif path[0] in FOREIGN_MAPPINGS and len(path) > 1:
            self._unknown(path, node)
        else:
            claims.leaf(path, node)  # unknown: reported with the schema's other errors

    def _alias(self, path: Path) -> Alias | None:
        """Dotted, flat, or inside our own mapping that the field belongs to."""
        exact = self.scope.aliases.get(".".join(path))
        if exact is not None or len(path) == 1:
            return exact
        alias, around = self.scope.aliases.get(path[-1]), path[:-1]
        if alias is None or len(alias.target) == 1 or alias.target[0] != around[-1]:
            return None
        return replace(alias, target=(*around, *alias.target[1:]))

    def _field(self, claims: Claims, path: Path, node: Node) -> None:
        if path in self.scope.mappings and isinstance(node.value, dict):
            mapped = claims.mapping(path, node)
            for key, child in node.value.items() if mapped else ():
                self._entry(claims, (*path, key), child)
        elif path == ("adapter",) and isinstance(node.value, str):
            self._value(claims, ("adapter", "type"), node, node, note=True)
        else:
            self._value(claims, path, node, node, note=False)

    def _aliased(self, claims: Claims, alias: Alias, path: Path, node: Node) -> None:
        if _among(alias.idle, node.value):
            return
        if alias.target in (PER_DEVICE, ACCUMULATION):
            claims.leaf(alias.target, node)
        elif alias.second:
            self._pair(claims, alias, node)
        elif alias.target in self.scope.mappings:
            self.notes.add(f"{spelled(node)} is taken as {'.'.join(alias.target)}", node)
            self._field(claims, alias.target, node)
        else:
            self._value(
                claims, alias.target, node, _translated(alias, node), note=path != alias.target
            )
            remark = lookup(alias.remarks, node.value)
            if remark is not None:
                self.notes.add(f"{_said(node)}: {remark}", node)

    def _pair(self, claims: Claims, alias: Alias, node: Node) -> None:
        if len(node.items()) != 2:
            fix = f"Write `{alias.target[0]}` and `{alias.second[0]}`."
            self._add(node, show(node), "a list of two numbers", fix)
            return
        for target, item in zip((alias.target, alias.second), node.items(), strict=True):
            self._value(claims, target, item, item, note=True)

    def _value(self, claims: Claims, target: Path, node: Node, ours: Node, *, note: bool) -> None:
        """Claim ``target`` with ``ours``, which stands for the user's ``node``."""
        kind = target[1:] if target[:2] == ("eval", "dataset") else target
        known = VALUES.get(kind, {})
        if _among(known, ours.value):
            ours = replace(ours, value=lookup(known, ours.value))
        refused = lookup(REFUSED_VALUES.get(kind, {}), ours.value)
        allowed = "another value"
        if isinstance(ours.value, float) and 0 < ours.value < 1:
            refused, allowed = SHARES.get(kind), "a whole number"
        if refused is not None:
            self._add(node, show(node), f"{allowed}: {refused[0]}", refused[1])
            return
        name = ".".join(target)
        if ours.value is not node.value or (note and target == ("adapter", "type")):
            self.notes.add(f"{_said(node)} is taken as {name}: {_plain(ours)}", node)
        elif note:
            self.notes.add(f"{spelled(node)} is taken as {name}", node)
        claims.leaf(target, ours)

    def _left_out(self, setting: Setting, path: Path, node: Node) -> None:
        if setting.harmless is None or _among(setting.harmless, node.value):
            if setting.why and node.value is not None:
                self.notes.add(f"{spelled(node)} is left out: {setting.why}", node)
            return
        name = ".".join(path)
        self._add(node, f"{name}: {show(node)}", f"no {name}: {setting.reason}", setting.fix)

    def _unknown(self, path: Path, node: Node) -> None:
        known = [
            name for name in (*self.scope.aliases, *SETTINGS) if name.startswith(f"{path[0]}.")
        ]
        allowed = ", ".join(name.partition(".")[2] for name in known) or "nothing"
        fix = "Give it as a field of the job, where there is one, or remove it."
        self._add(node, f"the unknown field {path[-1]!r}", f"of `{path[0]}`: {allowed}", fix)

    def _add(self, node: Node, found: str, allowed: str, fix: str) -> None:
        self.problems.append(Problem(self.file, node.line, node.where, found, allowed, fix))


def _among(values: Iterable[Scalar], value: object) -> bool:
    """Whether ``value`` is one of them, where 1, 1.0 and true are three values."""
    return any(type(value) is type(other) and value == other for other in values)


def _translated(alias: Alias, node: Node) -> Node:
    value = node.value
    if _among(alias.values, value):
        return replace(node, value=lookup(alias.values, value))
    if alias.names and isinstance(value, str):
        names = [name.strip() for name in value.split(",")]
        return replace(node, value=tuple(replace(node, value=name) for name in names))
    if alias.whole and isinstance(value, float) and value.is_integer():
        return replace(node, value=int(value))
    return node


def _said(node: Node) -> str:
    return f"{spelled(node)}: {_plain(node)}"


def _plain(node: Node) -> str:
    return json.dumps(node.plain(), ensure_ascii=False).replace('"', "")
