"""The part of docs/job-file.md about other tools' names, made from the tables that loading uses."""

from __future__ import annotations

import json
from collections.abc import Mapping

from lorafusion.jobs.aliases import (
    ACCUMULATION,
    JOB,
    PER_DEVICE,
    REFUSED_VALUES,
    TOP,
    VALUES,
    Alias,
)
from lorafusion.jobs.settings import SETTINGS, Setting
from lorafusion.jobs.yaml_tree import Scalar

_BATCHES: dict[tuple[str, ...], str] = {PER_DEVICE: "per device", ACCUMULATION: "accumulation"}


def aliases_section() -> str:
    """Which names of other tools are taken as which fields, and which settings are left out."""
    lines = [_INTRODUCTION, "| field | also accepted |", "|---|---|"]
    lines += [*_fields(TOP, " (top)"), *_fields(JOB, "")]
    lines += ["", "| value | also accepted |", "|---|---|", *_values()]
    lines += ["", "| value | why it is refused |", "|---|---|", *_refused_values()]
    lines += [_SETTINGS, "| setting | left out | else refused |", "|---|---|---|", *_settings()]
    return "\n".join([*lines, ""])


def _fields(table: Mapping[str, Alias], place: str) -> list[str]:
    by_target: dict[str, list[str]] = {}
    for name, alias in table.items():
        field = _field(alias)
        by_target.setdefault(field + place, []).append(_alias(name, alias))
    return [f"| {field} | {', '.join(names)} |" for field, names in by_target.items()]


def _field(alias: Alias) -> str:
    if alias.target in _BATCHES:
        return f"`global_batch_size` ({_BATCHES[alias.target]})"
    fields = [".".join(target) for target in (alias.target, alias.second) if target]
    return " and ".join(f"`{field}`" for field in fields)


def _alias(name: str, alias: Alias) -> str:
    values = [f"{_yaml(theirs)} is {_yaml(ours)}" for theirs, ours in alias.values.items()]
    return f"`{name}`" + (f" ({', '.join(values)})" if values else "")


def _values() -> list[str]:
    by_ours: dict[str, list[str]] = {}
    for target, values in VALUES.items():
        for theirs, ours in values.items():
            row = by_ours.setdefault(f"`{'.'.join(target)}: {_yaml(ours)}`", [])
            row.append(f"`{_yaml(theirs)}`")
    return [f"| {ours} | {', '.join(theirs)} |" for ours, theirs in by_ours.items()]


def _refused_values() -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for target, values in REFUSED_VALUES.items():
        for value, (reason, _) in values.items():
            by_reason.setdefault(reason, []).append(f"`{'.'.join(target)}: {_yaml(value)}`")
    return [f"| {', '.join(values)} | {reason} |" for reason, values in by_reason.items()]


def _settings() -> list[str]:
    names: dict[Setting, list[str]] = {}
    for name, setting in SETTINGS.items():
        names.setdefault(setting, []).append(f"`{name}`")
    return [
        f"| {', '.join(alike)} | {_left_out(setting)} | {setting.reason or '-'} |"
        for setting, alike in names.items()
    ]


def _left_out(setting: Setting) -> str:
    if setting.harmless is None:
        return f"always: {setting.why}"
    if not setting.why:
        return "where it is off" if False in setting.harmless else "null"
    values = [_yaml(value) for value in setting.harmless if value is not None]
    return f"{', '.join(values)}: {setting.why}"


def _yaml(value: Scalar) -> str:
    return value if isinstance(value, str) else json.dumps(value)


_INTRODUCTION = """\
## Names of other tools

Fields of PEFT, TRL, axolotl, LLaMA-Factory, torchtune and litgpt are taken as ours where they mean
the same. `lorafusion validate` and `train` note what was taken as what, with lines. The JSON schema
of `lorafusion schema` lists our own names only.

- They stand where ours would: those of the top at the top, all others in `defaults` or in a job.
  Those of `adapter`, `dataset` and `eval` may also stand flat in the job or inside the mapping. A
  dotted name stands in one of that tool's mappings, such as `optimizer: {lr: 1e-4}`.
- Two names for one field in one place are an error; one in a job overrides any in `defaults`.
- `adapter: lora` is `adapter: {type: lora}`.
- Samples per device (1 device) times accumulation steps (1 where not given) are
  `global_batch_size`; beside it, both are refused. One may stand in `defaults` and one in a job.
- Only names are taken. What a field is when nobody gives it is said above, whatever the default of
  the other tool.
- A share, such as `val_size: 0.05` or `eval_steps: 0.1`, is refused: rows and steps are not known
  when the file is read.
- A whole file of another tool, with a job's fields at its top and no `jobs`, is not run; the error
  says how it would look here.
"""
_SETTINGS = """
These have no field here. They are left out where that changes no loss and no weight, and refused
with the reason where it would.
"""
