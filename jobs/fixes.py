"""How to mend a value that does not fit its field."""

from __future__ import annotations

import difflib
import math
import re

from lorafusion.jobs.describe import Fields, variants
from lorafusion.jobs.yaml_tree import Node, Scalar

Path = tuple[str | int, ...]

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
_BY_FIELD = {
    "jobs": "List the jobs, each starting with `- name: ...`.",
    "dataset": "Write `dataset: {path: FILE.jsonl}`.",
    "adapter": "Write `adapter: {type: lora, r: 8}`.",
    "eval": "Write `eval: {val_size: 64}`.",
    "target_modules": "Write all-linear, or a list of names in quotes.",
}
_BY_FIELD_OF_ZERO = {
    "r": "A LoRA of rank 0 has nothing to train; give r of 1 or more.",
    "max_grad_norm": "Write null for no clipping.",
    "learning_rate": "A rate of 0 trains nothing; give a rate such as 2e-4.",
}


def fix_for(node: Node, path: Path, fields: Fields) -> str | None:
    """What to write instead of ``node`` at ``path``; None where nothing apt is known."""
    value, field = node.value, str(path[-1]) if path else ""
    types = {str(fields.resolve(branch).get("type")) for branch in variants(fields.at(path))}
    if isinstance(value, dict) and "object" in types:
        return None  # a mapping is right here: the message says what is wrong in it
    if isinstance(value, bool) or value is None or not isinstance(value, Scalar):
        return _BY_FIELD.get(field) or _shape_fix(value is None, types, fields.allowed(path))
    if isinstance(value, str):
        return _text_fix(value, types, path, fields)
    if isinstance(value, float) and "integer" in types and math.isfinite(value):
        return f"Write {value:.0f}." if value.is_integer() else "Write a whole number."
    by_field = _BY_FIELD_OF_ZERO if value == 0 else _BY_FIELD
    return by_field.get(field) or _number_fix(value, types)


def _shape_fix(missing: bool, types: set[str], allowed: str) -> str:
    if missing:
        return "Give a value, or remove the line to use the default."
    if "object" in types:
        return "Write its fields on indented lines below."
    return f"Write {allowed}."


def _number_fix(value: float, types: set[str]) -> str | None:
    if not math.isfinite(value):
        return "Write a finite number."
    if types & {"integer", "number"}:
        return "Choose a number in that range."
    if "boolean" in types:
        return "Write true or false."
    return f'If it is meant as text, put it in quotes: "{value}".' if "string" in types else None


def _text_fix(value: str, types: set[str], path: Path, fields: Fields) -> str | None:
    number = value.strip().replace("_", "").replace(",", "")
    if types & {"integer", "number"} and _NUMBER.fullmatch(number):
        return f"Write {number} without quotes, commas or underscores."
    if "boolean" in types:
        return f"Write {'true' if value.lower() in ('yes', 'on', 'true', 'y') else 'false'}."
    if path[-1:] == ("name",):
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", value).strip("._-")[:64]
        return f"The name is also a folder's. Write {name or 'job-1'}, for example."
    if path[-1:] == ("dataset",) and value.isprintable():
        return f"Write `dataset: {{path: {value}}}`."
    options = fields.options(path)
    close = difflib.get_close_matches(value, options, n=1)
    if close:
        return f"Did you mean `{close[0]}`?"
    if options:
        return f"Write {options[0]}, for example."
    if types & {"object", "array"}:
        return _BY_FIELD.get(str(path[-1])) if path else None
    return "Write a number." if types & {"integer", "number"} else None
