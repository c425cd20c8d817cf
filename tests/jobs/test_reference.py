"""The schema for editors and the page of the docs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from lorafusion.jobs.loading import load_run_file
from lorafusion.jobs.reference import REGENERATE, file_schema, markdown

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "jobs" / "examples").glob("*.yaml"))
RUN: dict[str, Any] = {"base_model": "m", "jobs": [{"name": "a", "dataset": {"path": "x"}}]}


def accepts(content: Any) -> bool:
    return jsonschema.Draft202012Validator(file_schema()).is_valid(content)


def test_the_schema_is_a_schema() -> None:
    schema = file_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"].endswith("2020-12/schema")


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_the_schema_accepts_the_examples(file: Path) -> None:
    jsonschema.Draft202012Validator(file_schema()).validate(yaml.safe_load(file.read_text()))


@pytest.mark.parametrize(
    "content",
    [
        RUN,
        {**RUN, "jobs": [{"name": "a"}], "defaults": {"dataset": {"path": "x"}}},
        {**RUN, "defaults": {"adapter": {"r": 4}, "eval": {"dataset": {"type": "messages"}}}},
        {**RUN, "defaults": None, "capacity": "auto", "threads": None},
    ],
)
def test_the_schema_accepts_what_loads(content: Any, tmp_path: Path) -> None:
    assert accepts(content)


@pytest.mark.parametrize(
    "content",
    [
        {**RUN, "zzz": 1},
        {**RUN, "capacity": "lots"},
        {**RUN, "defaults": {"name": "a"}},
        {**RUN, "defaults": {"lr": 1}},
        {"base_model": "m"},
        {"jobs": RUN["jobs"]},
        {**RUN, "jobs": []},
        {**RUN, "jobs": [{"dataset": {"path": "x"}}]},
        {**RUN, "jobs": [{"name": "a/b"}]},
        {**RUN, "jobs": [{"name": "a", "adapter": {"r": 0}}]},
        {**RUN, "jobs": [{"name": "a", "adapter": {"r": "8"}}]},
    ],
)
def test_the_schema_refuses(content: Any) -> None:
    assert not accepts(content)


def test_the_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "job-file.md").read_text()
    assert page == markdown(), f"docs/job-file.md is old; run: {REGENERATE}"


def test_the_pages_example_loads(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", markdown(), re.DOTALL)
    (tmp_path / "run.yaml").write_text(example)
    assert len(load_run_file(tmp_path / "run.yaml").jobs) == 2


def test_every_field_of_a_run_and_a_job_is_described() -> None:
    models = {"": file_schema(), **file_schema()["$defs"]}
    fields = {
        f"{model}.{name}": field
        for model, schema in models.items()
        for name, field in schema["properties"].items()
    }
    assert len(fields) > 30
    assert [name for name, field in fields.items() if not field.get("description")] == []
