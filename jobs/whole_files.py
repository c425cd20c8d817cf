"""A whole configuration of another tool: one message that says how to make a job file of it.

It is not run as it is: it says what one job is, and its defaults for all that it leaves out are
not ours.
"""

from __future__ import annotations

from lorafusion.errors import Problem
from lorafusion.jobs import aliases
from lorafusion.jobs.aliases import FOREIGN_MAPPINGS
from lorafusion.jobs.schema import JobSpec, RunSpec
from lorafusion.jobs.settings import SETTINGS
from lorafusion.jobs.yaml_tree import Node

_MOST = 12  # names in a message
_TOP = {*RunSpec.model_fields, *aliases.TOP} - {"checkpointer.checkpoint_dir"}
_JOB = {*JobSpec.model_fields, *aliases.JOB, *SETTINGS, *FOREIGN_MAPPINGS}


def foreign_file(root: Node, file: str) -> Problem | None:
    """The problem of a file with one job's fields at its top and no ``jobs``; None for others."""
    if not isinstance(root.value, dict) or root.child("jobs") or root.child("defaults"):
        return None
    fields = [key for key in root.value if key in _JOB - _TOP]
    if not fields:
        return None
    return Problem(
        file,
        root.value[fields[0]].line,
        "",
        f"a job's fields at the top ({_list(fields[:4], more=len(fields) > 4)}) and no `jobs`, "
        "as axolotl, TRL, LLaMA-Factory, torchtune and litgpt write them",
        "`base_model` and a list `jobs`, each with `name`, `dataset` and such fields",
        _rewrite(root.value, fields),
    )


def _rewrite(entries: dict[str, Node], fields: list[str]) -> str:
    top = [key for key in entries if key in _TOP and not isinstance(entries[key].value, dict)]
    moved = [key for key in fields if key not in ("dataset", "datasets", "name", *SETTINGS)]
    unknown = [key for key in entries if key not in {*top, *_JOB}]
    parts = [f"Leave {_list(top)} at the top." if top else "Give `base_model` at the top."]
    parts.append(f"Below them write `jobs:` and one job, `- name: my-job` with {_dataset(entries)}")
    if moved:
        names = _list(moved[:_MOST], more=len(moved) > _MOST)
        parts[-1] += f", and move there, under the names they have, {names}"
    parts[-1] += "."
    if unknown:
        parts.append(f"Remove {_list(unknown[:_MOST], more=len(unknown) > _MOST)}.")
    parts.append("Then `lorafusion validate` says which values do not fit.")
    return " ".join(parts)


def _dataset(entries: dict[str, Node]) -> str:
    """How their dataset is written here: axolotl has a list of them, LLaMA-Factory names."""
    key = next((key for key in ("datasets", "dataset") if key in entries), None)
    if key is None:
        return "`dataset: {path: FILE}`"
    node = entries[key].items()[0] if entries[key].items() else entries[key]
    path, kind = node.child("path"), node.child("type")
    said = f"path: {path.value}" if path and isinstance(path.value, str) else "path: FILE"
    if kind is not None and isinstance(kind.value, str):
        said += f", type: {kind.value}"
    return f"`dataset: {{{said}}}` in place of `{key}`"


def _list(names: list[str], *, more: bool = False) -> str:
    quoted = [f"`{name}`" if name.isprintable() else repr(name) for name in names]
    if more or len(quoted) < 2:
        return ", ".join([*quoted, *(["..."] if more else [])])
    return f"{', '.join(quoted[:-1])} and {quoted[-1]}"
