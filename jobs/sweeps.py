"""A job with ``sweep`` stands for several: one for every choice of the values that it lists.

``sweep: {learning_rate: [1e-4, 2e-4], adapter.r: [8, 16]}`` is a grid of four. What stands below
``zip`` goes together, first with first: ``zip: {adapter.r: [8, 16], adapter.lora_alpha: [16, 32]}``
is two.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lorafusion.errors import Problem
from lorafusion.jobs.problems import show
from lorafusion.jobs.yaml_tree import Node

__all__ = ["FIELD", "MOST", "expand"]

FIELD = "sweep"
_ZIP = "zip"
MOST = 1000
"""Jobs of one sweep."""
_LONGEST_NAME = 64
_SHORT = {"learning_rate": "lr", "global_batch_size": "batch", "lora_alpha": "alpha"}
_LIST = "a list of values, such as [8, 16]"
_FIELDS = "fields of the job other than its name and its sweep"

Choice = tuple[tuple[str, Node], ...]
"""Fields, as the file writes them, and a value for each."""


@dataclass(frozen=True)
class _Sweep:
    """Reads one."""

    file: str
    problems: list[Problem]

    def jobs(self, job: Node, sweep: Node) -> list[Node]:
        """The jobs that ``job`` stands for; where its sweep is wrong, the one without it."""
        known = len(self.problems)
        axes = list(self._axes(sweep))
        self._once(sweep, axes)
        count = 1
        for axis in axes:
            count *= len(axis)
        if count > MOST:
            self._add(sweep, f"{count:,} jobs", f"at most {MOST:,}", "List fewer values.")
        rest = _without_sweep(job)
        if len(self.problems) > known:
            return [rest]
        choices = [sum(parts, ()) for parts in itertools.product(*axes)]
        variants = [_marked(self._chosen(rest, choice), sweep, choice) for choice in choices]
        return list(_named(rest, variants, choices))

    def _axes(self, sweep: Node) -> Iterator[list[Choice]]:
        if not isinstance(sweep.value, dict) or not sweep.value:
            fix = "Write `sweep: {learning_rate: [1e-4, 2e-4]}`."
            self._add(sweep, show(sweep), "a mapping of fields to lists of values", fix)
            return
        for field, node in sweep.value.items():
            if field == _ZIP:
                yield self._zipped(node)
            else:
                yield [((field, value),) for value in self._values(field, node)]

    def _zipped(self, node: Node) -> list[Choice]:
        if not isinstance(node.value, dict) or not node.value:
            fix = "Write `zip: {adapter.r: [8, 16], adapter.lora_alpha: [16, 32]}`."
            self._add(node, show(node), "a mapping of fields to lists of values", fix)
            return []
        columns = [
            [(field, value) for value in self._values(field, below)]
            for field, below in node.value.items()
        ]
        if len({len(column) for column in columns}) > 1:
            lengths = ", ".join(str(len(column)) for column in columns)
            fix = "Give each field as many values, or move one out of `zip`."
            self._add(node, f"lists of {lengths} values", "lists of the same length", fix)
            return []
        return list(zip(*columns, strict=True))

    def _values(self, field: str, node: Node) -> Sequence[Node]:
        if field.partition(".")[0] in (FIELD, _ZIP, "name"):
            self._add(node, f"the field {field!r} in a sweep", _FIELDS, "Remove it.")
        elif not node.items():
            self._add(node, show(node), _LIST, "Write the values in brackets.")
        return node.items()

    def _once(self, sweep: Node, axes: Sequence[Sequence[Choice]]) -> None:
        """A field of the grid and of ``zip`` as well would have two values."""
        fields = [field for axis in axes if axis for field, _ in axis[0]]
        for field in sorted({field for field in fields if fields.count(field) > 1}):
            words = (f"the field {field!r} twice", "each field once", "Remove one of the two.")
            self._add(sweep, *words)

    def _chosen(self, job: Node, choice: Choice) -> Node:
        # A mapping first, then what is chosen inside of it.
        for field, value in sorted(choice, key=lambda entry: entry[0].count(".")):
            job = _with(job, field.split("."), value)
        return job

    def _add(self, node: Node, found: str, allowed: str, fix: str) -> None:
        self.problems.append(Problem(self.file, node.line, node.where, found, allowed, fix))


def expand(root: Node, file: str) -> tuple[Node, list[Problem]]:
    """The tree of a file with each sweep as the jobs that it stands for, and what is wrong.

    Each of them has, in place of the sweep, which choice of it it is.
    """
    problems: list[Problem] = []
    defaults, jobs = root.child("defaults"), root.child("jobs")
    if defaults is not None and (node := defaults.child(FIELD)) is not None:
        words = (show(node), "a sweep of one job", "Move `sweep` into the job.")
        problems.append(Problem(file, node.line, node.where, *words))
        root = _with(root, ["defaults"], _without_sweep(defaults))
    if jobs is None or not isinstance(root.value, dict):
        return root, problems
    reader = _Sweep(file, problems)
    expanded: list[Node] = []
    for job in jobs.items():
        sweep = job.child(FIELD)
        if sweep is None or sweep.value is None:
            expanded.append(_without_sweep(job))
        else:
            expanded += reader.jobs(job, sweep)
    entries = {**root.value, "jobs": replace(jobs, value=tuple(expanded))}
    return replace(root, value=entries if jobs.items() else root.value), problems


def _without_sweep(node: Node) -> Node:
    if node.child(FIELD) is None:
        return node
    return replace(node, value={k: v for k, v in _entries(node).items() if k != FIELD})


def _marked(job: Node, sweep: Node, choice: Choice) -> Node:
    """``job`` with what its results are told apart by: ``SweepChoice`` of the schema."""
    name = job.child("name")
    if name is None or not isinstance(name.value, str):
        return job  # reported where names are looked at
    mark = {"name": name, "choice": Node(dict(choice), sweep.line, sweep.where)}
    return _with(job, [FIELD], Node(mark, sweep.line, sweep.where))


def _entries(node: Node) -> dict[str, Node]:
    return node.value if isinstance(node.value, dict) else {}


def _with(node: Node, path: Sequence[str], value: Node) -> Node:
    """``node`` with a value at a path below it; what stands for a mapping on the way gives way."""
    first, *rest = path
    below = _entries(node).get(first)
    if rest:
        value = _with(below or Node({}, value.line, value.where), rest, value)
    return replace(node, value={**_entries(node), first: value})


def _named(job: Node, variants: Sequence[Node], choices: Sequence[Choice]) -> Iterator[Node]:
    """Each with a name of its own: the values in it, or its number where that is too long."""
    name = job.child("name")
    if name is None or not isinstance(name.value, str):
        yield from variants  # reported where names are looked at
        return
    names = [f"{name.value}-{'-'.join(map(_word, choice))}" for choice in choices]
    told = {text.casefold() for text in names}
    if len(told) < len(names) or max(map(len, names)) > _LONGEST_NAME:
        names = [f"{name.value}-{number}" for number in range(1, len(names) + 1)]
    for variant, text in zip(variants, names, strict=True):
        yield _with(variant, ["name"], replace(name, value=text))


def _word(entry: tuple[str, Node]) -> str:
    field, node = entry
    leaf = field.rpartition(".")[2]
    value = node.plain()
    text = str(value).lower() if isinstance(value, bool) or value is None else str(value)
    return re.sub(r"[^A-Za-z0-9._]+", "_", f"{_SHORT.get(leaf, leaf)}{text}").strip("_")
