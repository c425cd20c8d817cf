"""From a YAML file to a :class:`RunSpec`, or to every problem in it at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from lorafusion.errors import JobFileError, Problem
from lorafusion.jobs.checks import check_run
from lorafusion.jobs.describe import Fields, run_schema
from lorafusion.jobs.normalise import normalise
from lorafusion.jobs.problems import JOB, Translator, show
from lorafusion.jobs.schema import JobSpec, RunSpec
from lorafusion.jobs.spellings import REFUSED
from lorafusion.jobs.sweeps import expand
from lorafusion.jobs.whole_files import foreign_file
from lorafusion.jobs.yaml_tree import MAX_BYTES, Node, TreeError, parse


@dataclass(frozen=True)
class RunFile:
    """A job file that was read: what it says, and where it says so.

    Attributes:
        file: Its path.
        tree: Its content, with the defaults merged into the jobs.
        spec: What it says; None if there are problems.
        problems: All that is wrong with the file itself, in the order of lines.
        notes: Which fields of other tools were taken as which of ours.
    """

    file: str
    tree: Node
    spec: RunSpec | None
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = ()

    def valid(self) -> RunSpec:
        """What the file says.

        Raises:
            JobFileError: With every problem in it.
        """
        if self.spec is None:
            raise JobFileError(self.problems)
        return self.spec

    def problem(
        self, path: tuple[str | int, ...], *, found: str, allowed: str, fix: str
    ) -> Problem:
        """A problem at a path of the spec, such as ``("jobs", 0, "dataset")``.

        It points at the deepest part of the path that stands in the file.
        """
        node = self.tree
        for key in path:
            below = node.items()[key] if isinstance(key, int) else node.child(key)
            if below is None:
                break
            node = below
        return Problem(self.file, node.line, node.where, found, allowed, fix)


def load_run_file(path: Path) -> RunSpec:
    """Read a job file.

    Raises:
        JobFileError: With every problem in the file.
    """
    return read_run_file(path).valid()


def read_run_file(path: Path) -> RunFile:
    """The file with its lines kept, for checks that come later.

    Raises:
        JobFileError: Nothing can be made of the file.
    """
    file = str(path)
    written, unreadable = _read_tree(path, file)
    foreign = foreign_file(written, file)
    if foreign is not None:
        raise JobFileError(_sorted_once([*unreadable, foreign]))
    written, swept = expand(written, file)
    normal = normalise(written, file)
    root = normal.tree
    merged = _merged(root)
    problems = swept + normal.problems
    problems += _check_defaults(root, file) + check_run(merged, file)
    spec = None
    try:
        spec = RunSpec.model_validate(merged.plain(), strict=True)
    except ValidationError as error:
        problems += Translator(file, Fields(run_schema())).problems(error, merged)
    # What could not be read is not wrong for a second reason.
    places = {(problem.line, problem.where) for problem in unreadable}
    problems = [p for p in problems if (p.line, p.where) not in places]
    found = _sorted_once(unreadable + problems)
    return RunFile(file, merged, None if found else spec, found, normal.notes)


def _read_tree(path: Path, file: str) -> tuple[Node, list[Problem]]:
    try:
        root, problems = parse(_read_text(path, file), file)
    except TreeError as error:
        raise JobFileError((error.problem,)) from error
    shape, fix = "`base_model`, `defaults` and `jobs`", "`lorafusion schema` lists the fields."
    if root is None:
        raise JobFileError((Problem(file, 1, "", "an empty file", shape, fix),))
    if not isinstance(root.value, dict):
        problems.append(Problem(file, root.line, "", show(root), f"a mapping with {shape}", fix))
        raise JobFileError(_sorted_once(problems))
    for node in root.walk():
        if isinstance(node.value, float) and not math.isfinite(node.value):
            words = (show(node), "finite numbers", "Write a finite number.")
            problems.append(Problem(file, node.line, node.where, *words))
    return root, problems


def _read_text(path: Path, file: str) -> str:
    def refuse(found: str, allowed: str, fix: str, line: int = 1) -> JobFileError:
        return JobFileError((Problem(file, line, "", found, allowed, fix),))

    if path.is_dir():
        raise refuse("a folder", "a YAML file", "Name a file in it.")
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise refuse("no such file", "a YAML file", "Check the path.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        fix = "Check the path and its permissions."
        raise refuse(f"a file that cannot be read ({reason})", "a YAML file", fix) from error
    if len(data) > MAX_BYTES:
        fix = "Split it, or check that it is a job file and not data."
        raise refuse("a very large file", f"at most {MAX_BYTES} bytes", fix)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise refuse("bytes that are not UTF-8", "UTF-8 text", "Save it as UTF-8.", line) from error


def _check_defaults(root: Node, file: str) -> list[Problem]:
    """What is wrong in ``defaults`` by itself, even where every job overrides it."""
    defaults = root.child("defaults")
    if defaults is None or defaults.value is None:
        return []
    if not isinstance(defaults.value, dict):
        words = (
            show(defaults),
            "a mapping of job fields",
            "Write them indented below `defaults:`.",
        )
        return [Problem(file, defaults.line, "defaults", *words)]
    problems: list[Problem] = []
    name = defaults.child("name")
    if name is not None:
        words = ("a name for all jobs", "a name in each job", "Move `name` into the jobs.")
        problems.append(Problem(file, name.line, name.where, *words))
    rest = _without(defaults, {"name"})
    try:
        JobSpec.model_validate(_without_harmless(rest).plain(), strict=True)
    except ValidationError as error:
        translator = Translator(file, Fields(run_schema()), top=JOB, partial=True)
        problems += translator.problems(error, rest)
    return problems


def _merged(root: Node) -> Node:
    """The file without ``defaults``, which is laid under each job."""
    entries = dict(root.value) if isinstance(root.value, dict) else {}
    defaults = entries.pop("defaults", None)
    jobs = entries.get("jobs")
    if jobs is not None and isinstance(jobs.value, tuple):
        base = Node({}, root.line, "")
        if defaults is not None and isinstance(defaults.value, dict):
            base = _without(defaults, {"name"})
        merged = tuple(_without_harmless(_overlaid(base, job)) for job in jobs.value)
        entries["jobs"] = replace(jobs, value=merged)
    return replace(root, value=entries)


def _overlaid(base: Node, over: Node) -> Node:
    """``over`` on ``base``: mappings merge, lists and scalars replace."""
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    entries = {**base.value, **over.value}
    for key in base.value.keys() & over.value.keys():
        entries[key] = _overlaid(base.value[key], over.value[key])
    return replace(over, value=entries)


def _without_harmless(job: Node) -> Node:
    """``job`` less the adapter's PEFT settings that ask for nothing, such as ``bias: none``."""
    adapter = job.child("adapter")
    if adapter is None or not isinstance(job.value, dict) or not isinstance(adapter.value, dict):
        return job
    idle = {
        key
        for key, node in adapter.value.items()
        if key in REFUSED and node.plain() in REFUSED[key].harmless
    }
    return replace(job, value={**job.value, "adapter": _without(adapter, idle)})


def _without(node: Node, keys: set[str]) -> Node:
    entries = node.value if isinstance(node.value, dict) else {}
    return replace(node, value={key: child for key, child in entries.items() if key not in keys})


def _sorted_once(problems: list[Problem]) -> tuple[Problem, ...]:
    """By line; what several jobs took from the defaults is reported there once."""
    once = {(problem.line, problem.where, problem.found): problem for problem in problems[::-1]}
    return tuple(sorted(once.values(), key=lambda problem: (problem.line, problem.where)))
