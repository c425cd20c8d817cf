"""Whatever stands in a file: a run, or a JobFileError that can be printed. Nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorafusion.errors import JobFileError
from lorafusion.jobs.aliases import FOREIGN_MAPPINGS, JOB, TOP
from lorafusion.jobs.loading import load_run_file
from lorafusion.jobs.schema import RunSpec
from lorafusion.jobs.settings import SETTINGS
from lorafusion.jobs.spellings import HINTS, REFUSED

FIELDS = """base_model dtype capacity output_dir defaults jobs name dataset path type adapter r
lora_alpha target_modules eval val_size every warmup_steps warmup_ratio max_seq_len seed
learning_rate <<""".split()
KEYS = st.one_of(
    st.sampled_from([*FIELDS, *TOP, *JOB, *SETTINGS, *FOREIGN_MAPPINGS, *HINTS, *REFUSED]),
    st.text(max_size=3),
)
FIELDS_OF_OTHERS = ("lora_r", "lora_target", "micro_batch_size", "gradient_accumulation_steps")
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["auto", "all-linear", "lora", "messages", "a", "lm_head", "(", "1e-4", "yes"]),
)
TREES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(KEYS, below, max_size=5)),
    max_leaves=25,
)
JOBS = st.fixed_dictionaries(
    {"name": st.sampled_from("abAB"), "dataset": st.just({"path": "x"})},
    optional={
        **dict.fromkeys(("adapter", "eval", "seed", "max_seq_len", "output_dir"), TREES),
        **dict.fromkeys(FIELDS_OF_OTHERS, st.one_of(SCALARS, st.integers(1, 9))),
    },
)
RUNS = st.fixed_dictionaries(
    {"base_model": st.just("m"), "jobs": st.lists(st.one_of(JOBS, TREES), max_size=3)},
    optional={"defaults": TREES, "capacity": TREES, "output_dir": SCALARS, "dtype": TREES},
)
SETTINGS = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,  # a commit's tests do not depend on luck
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def check(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    problems = ()
    try:
        spec = load_run_file(file)
    except JobFileError as error:
        problems = error.problems
    else:
        assert RunSpec.model_validate(spec.model_dump()) == spec
        return
    assert problems
    for problem in problems:
        assert 1 <= problem.line <= len(data.splitlines()) + 1
        str(problem).encode()
        assert problem.found
        assert problem.allowed
        assert problem.fix


@SETTINGS
@given(tree=st.one_of(TREES, RUNS), flow=st.booleans())
def test_any_tree(tmp_path: Path, tree: Any, flow: bool) -> None:
    text = yaml.safe_dump(tree, default_flow_style=flow, allow_unicode=True)
    check(tmp_path / "run.yaml", text.encode("utf-8", "surrogatepass"))


@SETTINGS
@given(text=st.text(alphabet=st.sampled_from("ab:-[]{}&*!?|>'\"%@#, \n\t~.1e\\"), max_size=60))
def test_any_text(tmp_path: Path, text: str) -> None:
    check(tmp_path / "run.yaml", text.encode())


@SETTINGS
@given(data=st.binary(max_size=60))
def test_any_bytes(tmp_path: Path, data: bytes) -> None:
    check(tmp_path / "run.yaml", data)


@pytest.mark.parametrize("escape", [r"\0", r"\ud800", r"\n", r"\u202e", r"\U0010ffff"])
def test_odd_characters_in_every_place(tmp_path: Path, escape: str) -> None:
    odd = f'"x{escape}"'
    text = f"""base_model: {odd}
output_dir: {odd}
{odd}: {odd}
defaults: {{{odd}: 1, output_dir: {odd}, adapter: {{target_modules: [{odd}], {odd}: {odd}}}}}
jobs:
  - {{name: {odd}, dataset: {{path: {odd}, type: {odd}}}, seed: {odd}}}
  - {{name: b, dataset: {odd}, adapter: {{target_modules: {odd}}}, eval: {{{odd}: {odd}}}}}
"""
    check(tmp_path / "run.yaml", text.encode())
