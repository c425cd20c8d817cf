"""Whatever stands in a file: a run, or a JobFileError that can be printed. Nothing else."""

from __future__ import annotations

import copy
import time
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
# Of a file of at most a megabyte with aliases that repeat it; it takes a second or two.
LIMIT_S = 20.0
FUZZ = settings(
    max_examples=150,
    derandomize=True,  # a commit's tests do not depend on luck
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
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
        assert problem.file == str(file)
        assert isinstance(problem.where, str) and "\n" not in problem.where
        assert 1 <= problem.line <= len(data.splitlines()) + 1
        str(problem).encode()
        assert problem.found
        assert problem.allowed
        assert problem.fix


@FUZZ
@given(tree=st.one_of(TREES, RUNS), flow=st.booleans())
def test_any_tree(tmp_path: Path, tree: Any, flow: bool) -> None:
    text = yaml.safe_dump(tree, default_flow_style=flow, allow_unicode=True)
    check(tmp_path / "run.yaml", text.encode("utf-8", "surrogatepass"))


@FUZZ
@given(text=st.text(alphabet=st.sampled_from("ab:-[]{}&*!?|>'\"%@#, \n\t~.1e\\"), max_size=60))
def test_any_text(tmp_path: Path, text: str) -> None:
    check(tmp_path / "run.yaml", text.encode())


@FUZZ
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


# --- files that were right, spoiled in one to three places

VALID: dict[str, Any] = {
    "base_model": "m",
    "dtype": "bfloat16",
    "capacity": 2048,
    "output_dir": "runs/x",
    "defaults": {
        "dataset": {"path": "x.jsonl", "type": "messages", "columns": {"role": "from"}},
        "eval": {"val_size": 8, "every": 5, "patience": 3},
        "lora_alpha": 16,
    },
    "jobs": [
        {"name": "plain", "adapter": {"r": 8, "target_modules": ["q_proj", "v_proj"]}},
        {
            "name": "grid",
            "warmup_ratio": 0.1,
            "sweep": {"learning_rate": [1e-4, 2e-4], "adapter.r": [8, 16]},
        },
        {
            "name": "pairs",
            "optimizer": {"lr": 1e-3, "weight_decay": 0.1},
            "sweep": {"zip": {"adapter.r": [8, 16], "adapter.target_modules": ["all-linear"] * 2}},
        },
    ],
}
_ODD = st.one_of(
    SCALARS,
    st.sampled_from([10**30, -(10**50), 1e300, float("nan"), float("-inf"), 5e-324]),
    st.sampled_from(["x" * 5000, "\ud800", "\x00", "‮", "a: b", "*a", "((((", "[" * 40, "~/$HOME"]),
    st.integers(5, 60).map(lambda depth: nested(depth, [])),
    st.integers(5, 60).map(lambda depth: nested(depth, {})),
    st.sampled_from([[], {}, [[]], [None], {"": None}, {"r": {"r": 1}}, list(range(1500))]),
)
ODD = _ODD.map(copy.deepcopy)  # what was drawn may be spoiled further
SWEEPS = st.one_of(
    ODD,
    st.dictionaries(
        st.sampled_from(
            "seed zip name sweep adapter adapter.r adapter.r.r lora_r dataset dataset.path "
            "eval.val_size .. a. . output_dir jobs optimizer.lr".split()
        ),
        st.one_of(ODD, st.lists(ODD, max_size=4)),
        max_size=4,
    ),
    st.sampled_from(
        [
            {"zip": {"seed": [1, 2], "max_steps": [1]}},
            {"zip": {"zip": {"seed": [1, 2]}}},
            {"zip": [{"seed": [1]}, {"seed": [2]}]},
            {"sweep": [{"seed": [1, 2]}]},
            {"seed": list(range(40)), "max_steps": list(range(1, 40))},
            {f"f{n}": [1, 2] for n in range(300)},
            {"seed": [[1, 2], {"a": [3]}]},
            {"learning_rate": [1e-4, "x", None, float("nan"), True]},
            {"adapter": [{"r": 8}, {"r": "8"}, 3, None], "adapter.r": [1]},
        ]
    ),
)
BOMB = (
    "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))
    + "seed: &self [*self]\n"
)
BYTES = [
    *(b"\xff", b"\xc3", b"\x00", b"\xef\xbb\xbf", b"\t", b"\r", b"\xe2\x80\xa8"),
    *(b"&a ", b"*a ", b"---\n", b"!!python/object:os.system ", b"<<: *a\n", b"{", b"'", b"|\n"),
]


def nested(depth: int, innermost: Any) -> Any:
    for _ in range(depth):
        innermost = {"a": innermost} if depth % 2 else [innermost]
    return innermost


def places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything below ``tree``."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = [(tree, key) for key, _ in items]
    for container, key in list(found):
        if isinstance(container[key], dict | list):
            found += places(container[key])
    return found


def spoil_tree(draw: st.DrawFn, tree: dict[str, Any]) -> None:
    """Wrong types, unknown and missing keys, other tools' words, sweeps that are none."""
    container, key = draw(st.sampled_from(places(tree)))
    kind = draw(st.sampled_from(["value", "value", "remove", "key", "twice", "sweep", "sweep"]))
    if kind == "value":
        container[key] = draw(ODD)
    elif kind == "remove":
        del container[key]
    elif kind == "key" and isinstance(container, dict):
        container[draw(KEYS)] = draw(ODD)
    elif kind == "twice" and isinstance(container, list):
        container.append(container[key])
    elif tree.get("jobs") and isinstance(tree["jobs"], list):
        job = draw(st.sampled_from(tree["jobs"]))
        if isinstance(job, dict):
            job["sweep"] = copy.deepcopy(draw(SWEEPS))


def spoil_text(draw: st.DrawFn, text: bytes) -> bytes:
    """Keys that stand twice, text that is cut off, bytes that are none, aliases without end."""
    at = draw(st.integers(0, len(text)))
    kind = draw(st.sampled_from(["cut", "bytes", "line", "bomb", "swap"]))
    if kind == "cut":
        return text[:at]
    if kind == "bytes":
        return text[:at] + draw(st.sampled_from(BYTES)) + text[at:]
    lines = text.splitlines(keepends=True)
    row = draw(st.integers(0, max(0, len(lines) - 1)))
    if kind == "bomb":
        return b"".join([*lines[:row], BOMB.encode(), *lines[row:]])
    if kind == "line":
        return b"".join([*lines[: row + 1], *lines[row:]])
    other = draw(st.sampled_from([b":", b"-", b"  ", b"[", b"\n"]))
    return text.replace(other, draw(st.sampled_from([b"", b" ", b": ", b"\n"])), 2)


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    tree = copy.deepcopy(VALID)
    for _ in range(draw(st.integers(1, 3))):
        spoil_tree(draw, tree)
    flow = draw(st.booleans())
    dumped = yaml.safe_dump(tree, default_flow_style=flow, allow_unicode=True, sort_keys=False)
    text = dumped.encode("utf-8", "surrogatepass")
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):  # few are read to their end then
        text = spoil_text(draw, text)
    return text


def test_what_is_spoiled_was_right(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(VALID))
    assert len(load_run_file(tmp_path / "run.yaml").jobs) == 7


@settings(FUZZ, max_examples=300)
@given(data=spoiled())
def test_spoiled_files(tmp_path: Path, data: bytes) -> None:
    started = time.monotonic()
    check(tmp_path / "run.yaml", data)
    assert time.monotonic() - started < LIMIT_S
