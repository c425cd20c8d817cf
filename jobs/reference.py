"""The job file described: a JSON schema for editors, and the page docs/job-file.md."""

from __future__ import annotations

import json
from typing import Any

from lorafusion.jobs.aliases_reference import aliases_section
from lorafusion.jobs.describe import Fields, Schema, run_schema
from lorafusion.jobs.sweeps import FIELD, MOST

_VALUES: Schema = {"type": "array", "minItems": 1}
_SWEEP: Schema = {
    "type": "object",
    "description": "Fields with a list of values each: a job for every choice of them.",
    "properties": {"zip": {"type": "object", "additionalProperties": _VALUES}},
    "additionalProperties": _VALUES,
}
DRAFT = "https://json-schema.org/draft/2020-12/schema"
REGENERATE = "lorafusion schema --markdown > docs/job-file.md"


def file_schema() -> Schema:
    """The JSON schema of a job file (draft 2020-12).

    It differs from a run's: ``defaults`` may hold any field of a job but its name, and a job may
    leave out what it takes from there. What must be there after merging, ``lorafusion validate``
    checks.
    """
    schema = run_schema()
    definitions: dict[str, Schema] = schema["$defs"]
    for definition in definitions.values():
        definition.pop("required", None)
    job = definitions.pop("JobSpec")
    definitions.pop("SweepChoice")  # what a job is told apart by afterwards; nobody writes it
    defaults = {key: v for key, v in job["properties"].items() if key not in ("name", FIELD)}
    swept = {**job, "properties": {**job["properties"], FIELD: _SWEEP}}
    definitions["Job"] = {**swept, "title": "Job", "required": ["name"]}
    definitions["Defaults"] = {
        **job,
        "title": "Defaults",
        "description": "What jobs share. Mappings merge; lists and single values are replaced.",
        "properties": defaults,
    }
    jobs = schema["properties"].pop("jobs")
    schema["properties"]["defaults"] = {
        "anyOf": [{"$ref": "#/$defs/Defaults"}, {"type": "null"}],
        "description": "Fields of a job that are laid under each one.",
    }
    schema["properties"]["jobs"] = {**jobs, "items": {"$ref": "#/$defs/Job"}}
    return {"$schema": DRAFT, **schema, "title": "LoRAFusion job file"}


def markdown() -> str:
    """The page docs/job-file.md: every field with what it allows, its default and its meaning."""
    fields = Fields(run_schema())
    job = ("jobs", 0)
    parts = [
        _INTRODUCTION,
        _section("Top of the file", fields, ()),
        _section("`parallel`", fields, ("parallel",)),
        _section("A job, or `defaults`", fields, job),
        _section("`dataset`", fields, (*job, "dataset")),
        _section("`adapter`", fields, (*job, "adapter")),
        _section("`eval`", fields, (*job, "eval")),
        aliases_section(),
    ]
    return "\n".join(parts)


def _section(title: str, fields: Fields, path: tuple[str | int, ...]) -> str:
    lines = [f"## {title}", "", "| field | allowed | default | meaning |", "|---|---|---|---|"]
    for name in fields.names(path):
        if name == FIELD:
            continue  # in the introduction
        schema = fields.at((*path, name))
        cells = [f"`{name}`", fields.allowed((*path, name)), _default(schema)]
        meaning = " ".join(str(schema.get("description", "")).replace("``", "`").split())
        lines.append("| " + " | ".join(c.replace("|", r"\|") for c in [*cells, meaning]) + " |")
    return "\n".join([*lines, ""])


def _default(schema: Schema) -> str:
    if "default" not in schema:
        return "required"
    default: Any = schema["default"]
    if isinstance(default, dict) and default:
        return "as below"
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


_INTRODUCTION = f"""\
# The job file

<!-- Made by: {REGENERATE} -->

One YAML file describes a run: the base, what the jobs share, and the jobs.

```yaml
base_model: HuggingFaceTB/SmolLM2-135M-Instruct   # a hub id or a folder
output_dir: runs/first
defaults:
  learning_rate: 2e-4
  max_seq_len: 512
  eval: {{val_size: 64, every: 20}}
jobs:
  - name: support-r8
    dataset: {{path: data/support.jsonl, type: messages}}
    adapter: {{type: lora, r: 8, lora_alpha: 16, target_modules: all-linear}}
    num_epochs: 2
  - name: summaries-r32
    dataset: {{path: data/summaries.jsonl}}
    adapter: {{type: lora, r: 32, lora_alpha: 32, target_modules: [q_proj, v_proj]}}
    global_batch_size: 16
    max_steps: 200
```

- `lorafusion validate FILE` lists all that is wrong with a file, with lines, and exits with 2.
- `lorafusion schema` prints a JSON schema with which editors complete and check the file.
- `defaults` is laid under each job: mappings merge, lists and single values are replaced, and
  `null` undoes a default where the field allows it. `name` cannot be a default.
- `sweep: {{learning_rate: [1e-4, 2e-4], adapter.r: [8, 16]}}` in a job makes a job of every choice,
  here four, named by the values; what stands below `zip` goes together, first with first, so that
  `sweep: {{zip: {{adapter.r: [8, 16], adapter.lora_alpha: [16, 32]}}}}` is two.
  At most {MOST:,} jobs. A run ends in a table of them by loss, see [reports.md](reports.md#sweeps).
- Scalars follow YAML 1.2: `1e-4` is a number; `yes`, `on` and dates are text; booleans are `true`
  and `false`. Nothing is converted: `r: "8"` and `r: 8.0` are refused, as are unknown fields,
  double keys, `.inf` and `.nan`.
- Paths start at the current folder; `~`, `$LORAFUSION_HOME` and other variables are expanded.
- `warmup_ratio` and `warmup_steps` exclude each other, as do `eval.val_size` and `eval.dataset`;
  `max_seq_len` cannot exceed a `capacity` given as a number; names differ by more than case; no
  job's folder is another's or lies inside it.
- PEFT's `modules_to_save`, `use_dora`, `bias`, and LoRA on embeddings or the head are refused by
  name; the harmless values `null`, `false` and `none` are accepted.
"""
