"""Values given in Python, checked by the job file's own rules and reported in its words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from pathlib import PurePath
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError

from lorafusion.errors import JobError, Problem
from lorafusion.jobs import aliases
from lorafusion.jobs.checks import check_run
from lorafusion.jobs.describe import Fields, run_schema
from lorafusion.jobs.problems import Translator
from lorafusion.jobs.yaml_tree import Node, join

Model = TypeVar("Model", bound=BaseModel)

# What the rules between fields say of places in a file, where there is no file.
_LINE = re.compile(r" \((the other )?on line 0\)| \(line 0\)| on line 0")


def as_tree(value: object, where: str = "") -> Node:
    """``value`` as what a job file would hold; a model's unset fields stay unset."""
    if isinstance(value, BaseModel):
        # A method's name has a default, and still chooses among the methods.
        names = [n for n in type(value).model_fields if n in value.model_fields_set or n == "type"]
        value = {name: getattr(value, name) for name in names}
    if isinstance(value, Mapping):
        entries = cast("Mapping[object, object]", value).items()
        return Node({str(k): as_tree(v, join(where, str(k))) for k, v in entries}, 0, where)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        items = enumerate(cast("Sequence[object]", value))
        return Node(tuple(as_tree(item, join(where, index)) for index, item in items), 0, where)
    return Node(_scalar(value), 0, where)


def validated(
    model: type[Model], tree: Node, *, source: str, found: Sequence[Problem] = ()
) -> dict[str, Any]:
    """The fields of ``tree`` as plain values, once they are known to make a ``model``.

    Args:
        model: ``JobSpec`` or ``RunSpec``.
        tree: Its fields.
        source: The call that they were given to, for errors.
        found: Problems met before.

    Raises:
        JobError: With every problem.
    """
    whole = model.__name__ == "RunSpec"
    run = tree if whole else Node({"jobs": Node((tree,), 0, "")}, 0, "")
    problems = [*found, *check_run(run, source)]
    try:
        model.model_validate(tree.plain(), strict=True)
    except ValidationError as error:
        translator = Translator(source, Fields(run_schema()), top=() if whole else ("jobs", 0))
        problems += translator.problems(error, tree)
    raise_all(problems)
    return cast("dict[str, Any]", tree.plain())


def raise_all(problems: Sequence[Problem]) -> None:
    """Raise every problem at once, each place once.

    Raises:
        JobError: There is one.
    """
    once = {problem.where: problem for problem in problems[::-1]}.values()
    if once:
        raise JobError(tuple(_in_python(problem) for problem in once)[::-1])


def _in_python(problem: Problem) -> Problem:
    """Without lines, and with our name for another tool's: here its own is not accepted."""
    key = problem.where.rpartition(".")[2]
    alias = aliases.JOB.get(key) or aliases.TOP.get(key)
    fix = problem.fix
    if alias is not None and problem.found == f"the unknown field {key!r}":
        fix = f"It is called `{'.'.join(alias.target)}`."
        if not alias.target[0]:  # a factor of it
            fix = "Give `global_batch_size`, the samples of one optimizer step in all."
    return replace(problem, found=_LINE.sub("", problem.found), fix=fix)


def _scalar(value: object) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):  # numpy's integers too
        return int(value)
    return float(value) if isinstance(value, Real) else value
