"""Other tools' names: each gives the run that our own names give, or says why it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorafusion.jobs.aliases import (
    ACCUMULATION,
    JOB,
    PER_DEVICE,
    REFUSED_VALUES,
    SHARES,
    TOP,
    VALUES,
    Alias,
)
from lorafusion.jobs.loading import RunFile, read_run_file
from lorafusion.jobs.schema import RunSpec
from lorafusion.jobs.settings import SETTINGS

# A value for each of our fields that some other name stands for; never the default.
SAMPLES: dict[str, Any] = {
    "base_model": "other",
    "dtype": "float64",
    "threads": 3,
    "output_dir": "out",
    "name": "b",
    "dataset": {"path": "y", "type": "messages"},
    "dataset.path": "y",
    "dataset.name": "sub",
    "dataset.split": "test",
    "dataset.type": "alpaca",
    "dataset.train_on_inputs": True,
    "dataset.train_on": "last",
    "dataset.chat_template": "t.jinja",
    "dataset.columns": {"role": "from", "content": "value"},
    **{
        f"dataset.columns.{name}": "theirs"
        for name in "text messages role content instruction input output system".split()
    },
    "adapter.type": "lora",
    "adapter.r": 4,
    "adapter.lora_alpha": 5,
    "adapter.lora_dropout": 0.5,
    "adapter.target_modules": ["q_proj", "v_proj"],
    "adapter.use_rslora": True,
    "adapter.use_dora": False,
    "adapter.modules_to_save": None,
    "adapter.target_parameters": None,
    "adapter.task_type": "CAUSAL_LM",
    "adapter.fan_in_fan_out": False,
    "adapter.init_lora_weights": True,
    "adapter.init_from": "folder",
    "learning_rate": 1e-3,
    "lr_scheduler": "linear",
    "warmup_steps": 7,
    "weight_decay": 0.25,
    "adam_beta1": 0.5,
    "adam_epsilon": 1e-3,
    "max_grad_norm": 2.5,
    "global_batch_size": 6,
    "num_epochs": 2,
    "max_steps": 9,
    "max_seq_len": 64,
    "seed": 11,
    "eval.val_size": 12,
    "eval.every": 13,
    "eval.dataset": {"path": "z"},
    "eval.patience": 4,
    "logging_steps": 14,
    "save_every": 15,
}


def nested(path: str, value: Any) -> dict[str, Any]:
    key, _, rest = path.partition(".")
    return {key: nested(rest, value) if rest else value}


def laid(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = {**base, **over}
    for key in base.keys() & over.keys():
        if isinstance(base[key], dict) and isinstance(over[key], dict):
            merged[key] = laid(base[key], over[key])
    return merged


def run_with(job: dict[str, Any], *, place: str = "job") -> dict[str, Any]:
    """A run whose one job, or whose defaults, hold ``job``."""
    own: dict[str, Any] = {"name": "a", "dataset": {"path": "x"}}
    if place == "job":
        return {"base_model": "m", "jobs": [laid(own, job)]}
    rows = {} if job.keys() & {"eval_dataset", "val_size", "val_set_size"} else {"val_size": 3}
    if "early_stopping_patience" in job or "patience" in job.get("eval", {}):
        rows["every"] = 5
    if not rows or job.get("eval", {}).keys() & {"val_size", "dataset"}:
        return {"base_model": "m", "defaults": job, "jobs": [own]}
    return {"base_model": "m", "defaults": job, "jobs": [own | {"eval": rows}]}


def read(tmp_path: Path, content: Any) -> RunFile:
    file = tmp_path / "run.yaml"
    file.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
    return read_run_file(file)


def spec_of(tmp_path: Path, content: Any) -> RunSpec:
    run = read(tmp_path, content)
    assert run.problems == ()
    assert run.spec is not None
    return run.spec


def cases(table: dict[str, Alias]) -> list[tuple[str, Any, str, Any]]:
    """Their name and value, our field and value: for each name, and each value that differs."""
    found: list[tuple[str, Any, str, Any]] = []
    for name, alias in table.items():
        target = ".".join(alias.target)
        if alias.target in (PER_DEVICE, ACCUMULATION) or alias.second:
            continue
        taken = [(v, o) for v, o in alias.values.items() if (o or "") != "float16"]
        found += [(name, theirs, target, ours) for theirs, ours in taken]
        if not alias.values or alias.names or target == "eval.val_size":
            found.append((name, SAMPLES[target], target, SAMPLES[target]))
    return found


def job_with(index: int, name: str, value: Any) -> dict[str, Any]:
    """A job in which the field ``name`` has ``value``, and all it needs beside it."""
    own: dict[str, Any] = {"name": f"j{index}", "dataset": {"path": "x"}, "eval": {"val_size": 3}}
    target = ".".join(JOB[name].target) if name in JOB else name
    for field in ("dataset", "eval", "name"):
        if target in (field, "dataset.path", "eval.val_size", "eval.dataset"):
            own.pop(target.partition(".")[0], None)
    if target == "eval.patience":
        own["eval"]["every"] = 5
    return laid(own, nested(name, value))


def jobs_with(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    jobs = [job_with(index, name, value) for index, (name, value) in enumerate(fields)]
    return {"base_model": "m", "jobs": jobs}


def test_every_alias_of_a_job(tmp_path: Path) -> None:
    tried = [case for case in cases(JOB) if case[0] != "run_name"]
    got = read(tmp_path, jobs_with([(name, theirs) for name, theirs, _, _ in tried]))
    want = read(tmp_path, jobs_with([(target, ours) for _, _, target, ours in tried]))
    assert (got.problems, want.problems) == ((), ())
    pairs = zip(got.valid().jobs, want.valid().jobs, strict=True)
    differing = [case for case, (one, other) in zip(tried, pairs, strict=True) if one != other]
    assert differing == []
    unsaid = [case for case in tried if not any(said(case, note) for note in got.notes)]
    assert unsaid == []
    assert want.notes == ()


def said(case: tuple[str, Any, str, Any], note: str) -> bool:
    taken, _, what = note.partition(": ")[2].partition(" is taken as ")
    return taken.partition(":")[0] == case[0] and what.partition(":")[0] == case[2]


def test_the_cases_are_all_aliases() -> None:
    others = {name for name, a in JOB.items() if a.second or a.target[0] == ""}
    assert {case[0] for case in cases(JOB)} == JOB.keys() - others
    assert {case[0] for case in cases(TOP)} == TOP.keys() - {"fp16"}


def test_an_alias_in_defaults_is_that_of_every_job(tmp_path: Path) -> None:
    one_of_each = {case[2]: case for case in cases(JOB)}
    for name, theirs, target, ours in one_of_each.values():
        if target not in ("name", "dataset", "dataset.path"):
            got = run_with(nested(name, theirs), place="defaults")
            want = run_with(nested(target, ours), place="defaults")
            assert spec_of(tmp_path, got) == spec_of(tmp_path, want), name


def test_a_runs_name_is_a_jobs(tmp_path: Path) -> None:
    content = {"base_model": "m", "jobs": [{"run_name": "b", "dataset": {"path": "x"}}]}
    assert spec_of(tmp_path, content).jobs[0].name == "b"


@pytest.mark.parametrize(("name", "theirs", "target", "ours"), cases(TOP), ids=str)
def test_an_alias_at_the_top(
    tmp_path: Path, name: str, theirs: Any, target: str, ours: Any
) -> None:
    base = run_with({})
    if target == "base_model":
        del base["base_model"]
    assert spec_of(tmp_path, base | nested(name, theirs)) == spec_of(
        tmp_path, base | nested(target, ours)
    )


@pytest.mark.parametrize("name", [n for n, a in JOB.items() if a.target[0] == "adapter"])
def test_an_adapters_alias_inside_the_mapping(tmp_path: Path, name: str) -> None:
    target = JOB[name].target[-1]
    value = True if name == "lora_target_linear" else SAMPLES[f"adapter.{target}"]
    ours = "all-linear" if name == "lora_target_linear" else value
    got = spec_of(tmp_path, run_with({"adapter": {name: value}}))
    assert got == spec_of(tmp_path, run_with({"adapter": {target: ours}}))


@pytest.mark.parametrize("around", ["dataset", "eval.dataset"])
def test_a_datasets_aliases_inside_the_mapping(tmp_path: Path, around: str) -> None:
    theirs = {
        "type": "chat_template",
        "field_messages": "conversations",
        "message_property_mappings": {"role": "from", "content": "value"},
        "chat_template": "tokenizer_default",
    }
    columns = {"messages": "conversations", "role": "from", "content": "value"}
    ours = {"type": "messages", "columns": columns, "chat_template": None}
    base: dict[str, Any] = {"name": "a", "dataset": {"path": "x"}}
    got, want = (
        {"base_model": "m", "jobs": [laid(base, nested(around, {"path": "y"} | dataset))]}
        for dataset in (theirs, ours)
    )
    assert spec_of(tmp_path, got) == spec_of(tmp_path, want)


@pytest.mark.parametrize(
    ("target", "theirs", "ours"),
    [(target, *pair) for target, values in VALUES.items() for pair in values.items()],
    ids=str,
)
def test_a_value_of_another_tool(
    tmp_path: Path, target: tuple[str, ...], theirs: Any, ours: Any
) -> None:
    def run(value: Any) -> dict[str, Any]:
        field = nested(".".join(target), value)
        return run_with({}) | field if target == ("dtype",) else run_with(field)

    content = run(theirs) if target[0] != "dataset" else with_path(run(theirs))
    want = run(ours) if target[0] != "dataset" else with_path(run(ours))
    assert spec_of(tmp_path, content) == spec_of(tmp_path, want)


def with_path(run: dict[str, Any]) -> dict[str, Any]:
    run["jobs"][0]["dataset"]["path"] = "x"
    return run


@pytest.mark.parametrize("name", ["lora_target", "adapter.lora_target"])
@pytest.mark.parametrize("value", ["q_proj, v_proj", "q_proj,v_proj"])
def test_names_with_commas(tmp_path: Path, name: str, value: str) -> None:
    adapter = spec_of(tmp_path, run_with(nested(name, value))).jobs[0].adapter
    assert adapter.model_dump()["target_modules"] == ("q_proj", "v_proj")


def test_one_name_is_a_name_and_no_regex(tmp_path: Path) -> None:
    adapter = spec_of(tmp_path, run_with({"lora_target": "q_proj"})).jobs[0].adapter
    assert adapter.model_dump()["target_modules"] == ("q_proj",)


def test_a_pair_of_betas(tmp_path: Path) -> None:
    for name in ("betas", "adam_betas", "optimizer.betas", "optimizer.init_args.betas"):
        (job,) = spec_of(tmp_path, run_with(nested(name, [0.5, 0.25]))).jobs
        assert (job.adam_beta1, job.adam_beta2) == (0.5, 0.25)
    (problem,) = read(tmp_path, run_with({"betas": [0.5]})).problems
    assert problem.where == "jobs[0].betas"


def test_whole_epochs_written_as_decimals(tmp_path: Path) -> None:
    assert spec_of(tmp_path, run_with({"num_train_epochs": 3.0})).jobs[0].num_epochs == 3
    (problem,) = read(tmp_path, run_with({"num_train_epochs": 1.5})).problems
    assert (problem.where, problem.found) == ("jobs[0].num_train_epochs", "1.5")


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.e-4", "1.0e-4", "+1e-4", ".1e-3", "0.0001"])
@pytest.mark.parametrize("name", ["learning_rate", "lr"])
def test_rates_as_people_write_them(tmp_path: Path, text: str, name: str) -> None:
    content = f"base_model: m\njobs: [{{name: a, dataset: {{path: x}}, {name}: {text}}}]\n"
    assert spec_of(tmp_path, content).jobs[0].learning_rate == 1e-4


@pytest.mark.parametrize("idle", ["bf16: false", "fp16:", "fp16: false"])
def test_a_format_that_is_switched_off_says_nothing(tmp_path: Path, idle: str) -> None:
    text = f"base_model: m\ndtype: bfloat16\n{idle}\njobs: [{{name: a, dataset: {{path: x}}}}]\n"
    run = read(tmp_path, text)
    assert run.spec is not None
    assert (run.spec.dtype, run.notes) == ("bfloat16", ())


def settings_cases(*, harmless: bool) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, setting in SETTINGS.items():
        if setting.harmless is None:
            found += [(name, value) for value in (True, 7, {"a": 1}, None) if harmless]
        elif harmless:
            found += [(name, value) for value in setting.harmless]
        else:
            found += [(name, "something"), (name, ["a"])]
            found += [(name, flag) for flag in (True, False) if flag not in setting.harmless]
    return found


def test_settings_that_are_left_out(tmp_path: Path) -> None:
    tried = settings_cases(harmless=True)
    run = read(tmp_path, jobs_with(tried))
    assert run.problems == ()
    (plain,) = spec_of(tmp_path, jobs_with([("seed", 0)])).jobs
    jobs = [job.model_copy(update={"name": plain.name}) for job in run.valid().jobs]
    assert [case for case, job in zip(tried, jobs, strict=True) if job != plain] == []
    for name, value in tried:
        if value is not None and SETTINGS[name].why:
            text = f"{name} is left out: {SETTINGS[name].why}"
            assert any(note.endswith(text) for note in run.notes), name


def test_settings_that_are_refused(tmp_path: Path) -> None:
    tried = settings_cases(harmless=False)
    problems = read(tmp_path, jobs_with(tried)).problems
    by_place = {problem.where: problem for problem in problems}
    assert len(problems) == len(tried)
    for index, (name, _) in enumerate(tried):
        problem = by_place[f"jobs[{index}].{name}"]
        assert SETTINGS[name].reason
        assert SETTINGS[name].reason in problem.allowed
        assert problem.fix == SETTINGS[name].fix


def test_no_setting_hides_a_field_or_an_alias() -> None:
    own = {*RunSpec.model_fields, *SAMPLES}
    assert own.isdisjoint(SETTINGS)
    assert (TOP.keys() | JOB.keys()).isdisjoint(SETTINGS)
    assert set(SAMPLES).isdisjoint(TOP.keys() | JOB.keys())


@pytest.mark.parametrize(
    ("target", "value", "reason"),
    [(t, value, why) for t, values in REFUSED_VALUES.items() for value, (why, _) in values.items()],
    ids=str,
)
def test_a_value_that_is_refused(
    tmp_path: Path, target: tuple[str, ...], value: str, reason: str
) -> None:
    field = nested(".".join(target), value)
    if target[0] == "dataset":
        field["dataset"]["path"] = "x"
    content = run_with({}) | field if target == ("dtype",) else run_with(field)
    (problem,) = read(tmp_path, content).problems
    assert reason in problem.allowed


def test_float16_by_its_switch(tmp_path: Path) -> None:
    (problem,) = read(tmp_path, run_with({}) | {"fp16": True}).problems
    assert (problem.where, problem.found) == ("fp16", "true")
    assert "overflows" in problem.allowed


@pytest.mark.parametrize(
    "name", ["val_size", "val_set_size", "eval_steps", "save_steps", "warmup_steps", "eval.every"]
)
def test_a_share_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    target = ".".join(JOB[name].target) if name in JOB else name
    reason, fix = SHARES[tuple(target.split("."))]
    (problem,) = read(tmp_path, run_with(nested(name, 0.05))).problems
    assert problem.where == f"jobs[0].{name}"
    assert (problem.found, problem.fix) == ("0.05", fix)
    assert reason in problem.allowed
