"""Other tools' names beside each other and ours: conflicts, overrides, lines, and notes."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorafusion.errors import JobFileError, Problem
from lorafusion.jobs.loading import RunFile, read_run_file


def read(tmp_path: Path, text: str) -> RunFile:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    return read_run_file(file)


def the_problem(tmp_path: Path, text: str) -> Problem:
    (problem,) = read(tmp_path, text).problems
    return problem


HEAD = "base_model: m\njobs:\n  - name: a\n    dataset: {path: x}\n"


@pytest.mark.parametrize(
    ("extra", "line", "where", "other"),
    [
        ("    max_seq_len: 8\n    cutoff_len: 8", 6, "cutoff_len", "`max_seq_len` (line 5)"),
        ("    cutoff_len: 8\n    max_seq_len: 9", 6, "max_seq_len", "`cutoff_len` (line 5)"),
        ("    cutoff_len: 8\n    sequence_len: 8", 6, "sequence_len", "`cutoff_len` (line 5)"),
        ("    lora_r: 8\n    adapter: {r: 8}", 6, "adapter.r", "`lora_r` (line 5)"),
        ("    adapter:\n      r: 8\n    lora_r: 8", 7, "lora_r", "`adapter.r` (line 6)"),
        ("    adapter: {r: 8, lora_rank: 4}", 5, "adapter.lora_rank", "`adapter.r` (line 5)"),
        ("    adapter: lora\n    peft_type: LORA", 6, "peft_type", "`adapter` (line 5)"),
        (
            "    lora_target_linear: true\n    lora_target_modules: [q]",
            6,
            "lora_target_modules",
            "`lora_target_linear` (line 5)",
        ),
        ("    train_dataset: {path: y}", 5, "train_dataset", "`dataset` (line 4)"),
        ("    data_path: y", 5, "data_path", "`dataset.path` (line 4)"),
        (
            "    eval_dataset: {path: y}\n    eval: {dataset: {type: messages}}",
            6,
            "eval.dataset",
            "`eval_dataset` (line 5)",
        ),
        (
            "    micro_batch_size: 8\n    batch_size: 8",
            6,
            "batch_size",
            "`micro_batch_size` (line 5)",
        ),
        ("    adam_beta1: 0.5\n    betas: [0.5, 0.6]", 6, "betas[0]", "`adam_beta1` (line 5)"),
    ],
)
def test_two_names_for_one_field(
    tmp_path: Path, extra: str, line: int, where: str, other: str
) -> None:
    problem = the_problem(tmp_path, f"{HEAD}{extra}\n")
    assert (problem.line, problem.where) == (line, f"jobs[0].{where}")
    assert other in problem.found
    assert problem.allowed == "one of the two"


def test_two_names_at_the_top(tmp_path: Path) -> None:
    problem = the_problem(tmp_path, f"torch_dtype: float32\n{HEAD}bf16: true\n")
    assert (problem.line, problem.where) == (6, "bf16")
    assert "`torch_dtype` (line 1)" in problem.found
    assert problem.fix == "Remove line 1 or line 6."


@pytest.mark.parametrize(
    ("defaults", "job"),
    [
        ("lora_r: 4", "adapter: {r: 8}"),
        ("adapter: {r: 4}", "lora_rank: 8"),
        ("lora_rank: 4", "lora_r: 8"),
        ("adapter: {lora_r: 4, lora_dropout: 0.5}", "adapter: {r: 8, dropout: 0.0}"),
    ],
)
def test_a_job_overrides_by_any_name(tmp_path: Path, defaults: str, job: str) -> None:
    (spec,) = read(tmp_path, f"{HEAD}    {job}\ndefaults:\n  {defaults}\n").valid().jobs
    assert spec.adapter.model_dump()["r"] == 8
    assert spec.adapter.model_dump()["lora_dropout"] == 0


def test_a_target_is_one_field_in_all_its_names(tmp_path: Path) -> None:
    text = f"defaults:\n  lora_target_linear: true\n{HEAD}    lora_target_modules: [q_proj]\n"
    assert read(tmp_path, text).valid().jobs[0].adapter.model_dump()["target_modules"] == (
        "q_proj",
    )


@pytest.mark.parametrize(
    ("extra", "line", "where", "phrase"),
    [
        ("    lora_r: 0", 5, "jobs[0].lora_r", "rank 0 has nothing to train"),
        ('    lr: "1e-4"', 5, "jobs[0].lr", "Write 1e-4 without quotes"),
        ("    cutoff_len: 1", 5, "jobs[0].cutoff_len", ">= 2"),
        ("    lr_scheduler_type: cosin", 5, "jobs[0].lr_scheduler_type", "Did you mean `cosine`"),
        ("    adapter: loha", 5, "jobs[0].adapter", "allowed: lora"),
        ("    adapter:\n      lora_rank: 0", 6, "jobs[0].adapter.lora_rank", ">= 1"),
        ("    use_dora: true", 5, "jobs[0].use_dora", "DoRA"),
        ("    lora_target: lm_head", 5, "jobs[0].lora_target", "embedding"),
        ("    optimizer: {zzz: 1}", 5, "jobs[0].optimizer.zzz", "unknown field 'zzz'"),
        ("    eval_steps: 5", 5, "jobs[0].eval_steps", "nothing to evaluate on"),
        ("    warmup_ratio: 0.1\n    lr_warmup_steps: 3", 6, "jobs[0].lr_warmup_steps", "line 5"),
        ("defaults:\n  run_name: b", 6, "defaults.run_name", "Move `name` into the jobs"),
        ("defaults:\n  lora_r: x", 6, "defaults.lora_r", "found the text 'x'"),
    ],
)
def test_problems_point_at_the_users_own_words(
    tmp_path: Path, extra: str, line: int, where: str, phrase: str
) -> None:
    problem = the_problem(tmp_path, f"{HEAD}{extra}\n")
    assert (problem.line, problem.where) == (line, where)
    assert phrase in str(problem)


def test_later_checks_point_there_too(tmp_path: Path) -> None:
    run = read(tmp_path, f"{HEAD}    lora_target: q_proj\n    lora_r: 4\n")
    problem = run.problem(("jobs", 0, "adapter", "target_modules"), found="", allowed="", fix="")
    assert (problem.line, problem.where) == (5, "jobs[0].lora_target")
    whole = run.problem(("jobs", 0, "adapter"), found="", allowed="", fix="")
    assert (whole.line, whole.where) == (5, "jobs[0].adapter")


def test_notes_name_what_was_taken_as_what(tmp_path: Path) -> None:
    text = f"""{HEAD}    lora_r: 4
    lora_target_linear: true
    gradient_checkpointing: true
    lr_scheduler_type: constant
""" + "".join(f"  - {{name: {n}, dataset: {{path: x}}, lora_r: 8}}\n" for n in "bcdef")
    assert read(tmp_path, text).notes == (
        "lines 5, 9, 10 and 3 more: lora_r is taken as adapter.r",
        "line 6: lora_target_linear: true is taken as adapter.target_modules: all-linear",
        "line 7: gradient_checkpointing is left out: it trades memory for time, and changes no "
        "result",
        "line 8: lr_scheduler_type is taken as lr_scheduler",
        "line 8: lr_scheduler_type: constant: warm-up, where it is given, applies to it (TRL "
        "would ignore it)",
    )


def test_our_own_names_make_no_notes(tmp_path: Path) -> None:
    assert read(tmp_path, f"{HEAD}    adapter: {{type: lora, use_dora: false}}\n").notes == ()


def test_problems_do_not_hide_notes(tmp_path: Path) -> None:
    run = read(tmp_path, f"{HEAD}    lora_r: 4\n    zzz: 1\n")
    assert len(run.problems) == 1
    assert run.notes == ("line 5: lora_r is taken as adapter.r",)


def test_a_field_of_no_mapping_is_one_problem(tmp_path: Path) -> None:
    with pytest.raises(JobFileError) as caught:
        read(tmp_path, f"{HEAD}    adapter: 3\n    lora_r: 4\n").valid()
    (problem,) = caught.value.problems
    assert (problem.line, problem.where) == (5, "jobs[0].adapter")
