"""Which linears a job adapts: ``target_modules`` as PEFT reads it.

Names are matched without torch: ``lorafusion validate`` has them from an earlier look at the base.
"""

from __future__ import annotations

import re

from lorafusion.errors import AdapterError
from lorafusion.module_names import ModuleNames


def match_targets(names: ModuleNames, target_modules: str | tuple[str, ...]) -> tuple[str, ...]:
    """Full names of the linears that ``target_modules`` selects, in the model's order.

    ``all-linear`` selects every linear but the head; another string is a regular expression that
    must match the whole name; a list holds names or the ends of names after a dot.

    Raises:
        AdapterError: An entry selects nothing, or something that is not a linear.
    """
    linears = names.linears
    if target_modules == "all-linear":
        return linears
    entries = (target_modules,) if isinstance(target_modules, str) else target_modules
    whole_regex = isinstance(target_modules, str)
    selected: set[str] = set()
    for entry in entries:
        matches = [name for name in names.everything if _hits(entry, name, whole_regex)]
        _refuse_experts(entry, names, matches, whole_regex)
        if not matches:
            raise AdapterError(
                f"target_modules: {entry!r} matches no module of the base; allowed: all-linear, a "
                f"regular expression for whole names, or ends of names such as {_ends(linears)}."
            )
        others = [name for name in matches if name not in linears]
        if others:
            raise AdapterError(
                f"target_modules: {entry!r} selects {others[0]!r}, which is no linear layer below "
                f"the head (LoRA on embeddings, head or norms is not supported); allowed: "
                f"{_ends(linears)}."
            )
        selected.update(matches)
    return tuple(name for name in linears if name in selected)


def _refuse_experts(entry: str, names: ModuleNames, matches: list[str], whole_regex: bool) -> None:
    """Refuse a target that is, or would only be, a part of stacked experts."""
    for name in names.stacked:
        owner = name.rpartition(".")[0]
        inside = any(match == owner or match.startswith(f"{owner}.") for match in matches)
        if inside or (not matches and _hits(entry, name, whole_regex)):
            raise AdapterError(
                f"target_modules: {entry!r} selects experts ({name}), whose matrices are stacked "
                "in one tensor and no linear layers, so that they cannot have LoRA here; allowed: "
                f"{_ends(names.linears)}."
            )


def _hits(entry: str, name: str, whole_regex: bool) -> bool:
    if not whole_regex:
        return name == entry or name.endswith(f".{entry}")
    try:
        return re.fullmatch(entry, name) is not None
    except re.error as error:
        raise AdapterError(
            f"target_modules: {entry!r} is no regular expression ({error}); allowed: all-linear, a "
            "regular expression, or a list of names."
        ) from error


def _ends(linears: tuple[str, ...]) -> str:
    return ", ".join(dict.fromkeys(name.rsplit(".", 1)[-1] for name in linears))
