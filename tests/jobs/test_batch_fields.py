"""Samples per device and accumulation steps: one global batch, or the reason why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorafusion.jobs.loading import RunFile, read_run_file

HEAD = "base_model: m\njobs:\n  - name: a\n    dataset: {path: x}\n"
NAMES = ["per_device_train_batch_size", "per_device_batch_size", "micro_batch_size", "batch_size"]


def read(tmp_path: Path, text: str) -> RunFile:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    return read_run_file(file)


def batch_sizes(run: RunFile) -> list[int]:
    return [job.global_batch_size for job in run.valid().jobs]


@pytest.mark.parametrize("name", NAMES)
def test_the_product(tmp_path: Path, name: str) -> None:
    run = read(tmp_path, f"{HEAD}    {name}: 4\n    gradient_accumulation_steps: 3\n")
    assert batch_sizes(run) == [12]
    assert run.notes == (
        f"lines 5 and 6: {name}: 4 with gradient_accumulation_steps: 3 is taken as "
        "global_batch_size: 12, as on one device; the planner cuts it into microbatches",
    )


@pytest.mark.parametrize("name", NAMES)
def test_no_accumulation_is_one_step_of_it(tmp_path: Path, name: str) -> None:
    run = read(tmp_path, f"{HEAD}    {name}: 4\n")
    assert batch_sizes(run) == [4]
    assert f"line 5: {name}: 4 is taken as global_batch_size: 4" in run.notes[0]


def test_in_a_mapping_of_another_tool(tmp_path: Path) -> None:
    assert batch_sizes(read(tmp_path, f"{HEAD}    train: {{micro_batch_size: 4}}\n")) == [4]


@pytest.mark.parametrize(
    ("defaults", "job", "want"),
    [
        ("micro_batch_size: 4", "seed: 1", 4),
        ("micro_batch_size: 4", "gradient_accumulation_steps: 3", 12),
        ("gradient_accumulation_steps: 3", "micro_batch_size: 4", 12),
        ("{micro_batch_size: 4, gradient_accumulation_steps: 3}", "batch_size: 5", 15),
        ("{micro_batch_size: 4, gradient_accumulation_steps: 3}", "global_batch_size: 5", 5),
        ("gradient_accumulation_steps: 3", "global_batch_size: 5", 5),
        ("global_batch_size: 5", "micro_batch_size: 4", 4),
        (
            "global_batch_size: 5",
            "micro_batch_size: 4\n    gradient_accumulation_steps: 3",
            12,
        ),
    ],
)
def test_defaults_and_a_job(tmp_path: Path, defaults: str, job: str, want: int) -> None:
    text = f"{HEAD}    {job}\ndefaults:\n  {defaults}\n".replace("\n  {", " {")
    assert batch_sizes(read(tmp_path, text)) == [want]


def test_each_job_has_its_own_product(tmp_path: Path) -> None:
    text = f"""{HEAD}    gradient_accumulation_steps: 2
  - {{name: b, dataset: {{path: x}}, micro_batch_size: 2}}
  - {{name: c, dataset: {{path: x}}}}
defaults: {{micro_batch_size: 4}}
"""
    assert batch_sizes(read(tmp_path, text)) == [8, 2, 4]


@pytest.mark.parametrize(
    ("extra", "line", "where", "phrase"),
    [
        (
            "    global_batch_size: 8\n    micro_batch_size: 4",
            6,
            "jobs[0].micro_batch_size",
            "Keep `global_batch_size`, and remove `micro_batch_size`",
        ),
        (
            "    gradient_accumulation_steps: 8\n    global_batch_size: 4",
            6,
            "jobs[0].global_batch_size",
            "the planner cuts a global batch into microbatches itself",
        ),
        (
            "    train: {global_batch_size: 8, micro_batch_size: 1}",
            5,
            "jobs[0].train.micro_batch_size",
            "train.global_batch_size (line 5)",
        ),
        (
            "    gradient_accumulation_steps: 8",
            5,
            "jobs[0].gradient_accumulation_steps",
            "the samples of one optimizer step",
        ),
        (
            "defaults:\n  gradient_accumulation_steps: 8",
            6,
            "defaults.gradient_accumulation_steps",
            "without samples per device",
        ),
        (
            "    gradient_accumulation_steps: 8\ndefaults:\n  global_batch_size: 4",
            5,
            "jobs[0].gradient_accumulation_steps",
            "without samples per device",
        ),
        ("    micro_batch_size: 0", 5, "jobs[0].micro_batch_size", "a whole number >= 1"),
        ("    micro_batch_size: auto", 5, "jobs[0].micro_batch_size", "the text 'auto'"),
        ("    micro_batch_size: true", 5, "jobs[0].micro_batch_size", "found true"),
        ("    micro_batch_size: 2.0", 5, "jobs[0].micro_batch_size", "found 2.0"),
        (
            "    micro_batch_size: 2\n    gradient_accumulation_steps: auto",
            6,
            "jobs[0].gradient_accumulation_steps",
            "the text 'auto'",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, extra: str, line: int, where: str, phrase: str) -> None:
    (problem,) = read(tmp_path, f"{HEAD}{extra}\n").problems
    assert (problem.line, problem.where) == (line, where)
    assert phrase in str(problem)


def test_outside_a_job_it_is_no_field(tmp_path: Path) -> None:
    (problem,) = read(tmp_path, f"{HEAD}micro_batch_size: 4\n").problems
    assert "belongs in a job or in `defaults`" in problem.fix
