"""Sweeps: which jobs they stand for, and what is said of those that are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorafusion.errors import JobFileError, Problem
from lorafusion.jobs.loading import load_run_file
from lorafusion.jobs.reference import file_schema, markdown
from lorafusion.jobs.schema import JobSpec
from lorafusion.training.output import fingerprint

HEAD = "base_model: m\ndefaults: {dataset: {path: x.jsonl}}\njobs:\n"


def load(tmp_path: Path, jobs: str) -> tuple[JobSpec, ...]:
    file = tmp_path / "run.yaml"
    file.write_text(HEAD + jobs)
    return load_run_file(file).jobs


def problems(tmp_path: Path, jobs: str) -> tuple[Problem, ...]:
    with pytest.raises(JobFileError) as caught:
        load(tmp_path, jobs)
    return caught.value.problems


def told(jobs: tuple[JobSpec, ...]) -> list[tuple[str, float, Any]]:
    return [(job.name, job.learning_rate, job.adapter.model_dump()["r"]) for job in jobs]


def test_a_grid(tmp_path: Path) -> None:
    jobs = load(
        tmp_path,
        "  - {name: first}\n"
        "  - name: s\n"
        "    adapter: {lora_dropout: 0.1}\n"
        "    sweep: {learning_rate: [1e-4, 2e-4], adapter.r: [8, 16, 32]}\n"
        "  - {name: last}\n",
    )
    assert [job.name for job in jobs][::7] == ["first", "last"]
    assert told(jobs[1:-1]) == [
        (f"s-lr{rate}-r{rank}", rate, rank) for rate in (0.0001, 0.0002) for rank in (8, 16, 32)
    ]
    assert {job.adapter.model_dump()["lora_dropout"] for job in jobs[1:-1]} == {0.1}


def test_lists_that_go_together(tmp_path: Path) -> None:
    jobs = load(
        tmp_path,
        "  - name: s\n"
        "    sweep:\n"
        "      zip: {adapter.r: [8, 16], adapter.lora_alpha: [1, 2]}\n"
        "      seed: [1, 2]\n",
    )
    adapters = [job.adapter.model_dump() for job in jobs]
    pairs = [(adapter["r"], adapter["lora_alpha"]) for adapter in adapters]
    assert pairs == [(8, 1), (8, 1), (16, 2), (16, 2)]
    assert [job.seed for job in jobs] == [1, 2, 1, 2]


def test_other_tools_words_and_whole_mappings(tmp_path: Path) -> None:
    jobs = load(tmp_path, "  - {name: s, sweep: {lora_r: [4, 8]}}\n")
    assert [job.adapter.model_dump()["r"] for job in jobs] == [4, 8]
    jobs = load(tmp_path, "  - {name: s, sweep: {adapter: [{r: 4}, {r: 8, use_rslora: true}]}}\n")
    assert [job.adapter.model_dump()["r"] for job in jobs] == [4, 8]


def test_names_that_would_be_too_long_or_alike_are_numbers(tmp_path: Path) -> None:
    targets = "[[q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj], [q_proj]]"
    jobs = load(tmp_path, f"  - {{name: s, sweep: {{adapter.target_modules: {targets}}}}}\n")
    assert [job.name for job in jobs] == ["s-1", "s-2"]
    jobs = load(tmp_path, "  - {name: s, sweep: {output_dir: [a/b, a_b]}}\n")
    assert [job.name for job in jobs] == ["s-1", "s-2"]


@pytest.mark.parametrize(
    ("sweep", "where", "words"),
    [
        ("3", "jobs[0].sweep", "a mapping of fields to lists"),
        ("{}", "jobs[0].sweep", "a mapping of fields to lists"),
        ("{seed: 3}", "jobs[0].sweep.seed", "a list of values"),
        ("{seed: []}", "jobs[0].sweep.seed", "a list of values"),
        ("{name: [a, b]}", "jobs[0].sweep.name", "other than its name"),
        ("{sweep: [{seed: [1, 2]}]}", "jobs[0].sweep.sweep", "other than its name and its sweep"),
        ("{zip: {zip: {seed: [1, 2]}}}", "jobs[0].sweep.zip.zip", "other than its name"),
        ("{seed: [1], zip: {seed: [2]}}", "jobs[0].sweep", "each field once"),
        ("{zip: [1]}", "jobs[0].sweep.zip", "a mapping of fields to lists"),
        ("{zip: {seed: [1], max_steps: [1, 2]}}", "jobs[0].sweep.zip", "the same length"),
        ("{seed: [1, x]}", "jobs[0].sweep.seed[1]", "a whole number"),
        ("{learning_rate: [.nan, 1e-4]}", "jobs[0].sweep.learning_rate[0]", "finite numbers"),
        ('{seed: [{"\\ud800": 1}]}', "jobs[0].sweep.seed[0]", "a whole number"),
        ("{sede: [1, 2]}", "sede", ""),
        (f"{{seed: {list(range(40))}, max_steps: {list(range(1, 41))}}}", "sweep", "at most 1,000"),
    ],
)
def test_what_is_wrong_is_said_once(tmp_path: Path, sweep: str, where: str, words: str) -> None:
    found = problems(tmp_path, f"  - {{name: s, sweep: {sweep}}}\n")
    assert len(found) == (2 if "sede" in sweep else 1)  # of either value
    for problem in found:
        assert where in problem.where and words in problem.allowed
        assert problem.line == 4


def test_each_job_knows_its_choice(tmp_path: Path) -> None:
    jobs = load(
        tmp_path,
        "  - {name: alone}\n"
        "  - name: s\n"
        "    sweep:\n"
        "      zip: {lora_r: [8, 16], adapter.target_modules: [[q_proj, v_proj], all-linear]}\n"
        "      learning_rate: [1e-4]\n",
    )
    alone, first, second = jobs
    assert alone.sweep is None and first.sweep is not None and second.sweep is not None
    assert first.sweep.name == second.sweep.name == "s"
    assert dict(first.sweep.choice) == {
        "lora_r": 8,
        "adapter.target_modules": ("q_proj", "v_proj"),
        "learning_rate": 1e-4,
    }
    assert list(second.sweep.choice.values()) == [16, "all-linear", 1e-4]
    for job in jobs:
        text = job.model_dump_json(exclude_unset=True)
        assert JobSpec.model_validate_json(text) == job
        assert ("sweep" in text) == (job is not alone)


def test_nothing_that_is_trained_depends_on_the_choice(tmp_path: Path) -> None:
    """A job that is written out goes on with the checkpoints of one that a sweep made."""
    (swept,) = load(tmp_path, "  - {name: s, sweep: {learning_rate: [1e-3]}}\n")
    (written,) = load(tmp_path, "  - {name: s-lr0.001, learning_rate: 1e-3}\n")
    assert swept != written and fingerprint(swept, {}) == fingerprint(written, {})
    assert "sweep" not in str(fingerprint(swept, {}))


def test_a_mapping_is_chosen_before_what_is_inside_of_it(tmp_path: Path) -> None:
    text = "  - {name: s, sweep: {adapter.r: [4, 8], adapter: [{lora_dropout: 0.5}]}}\n"
    adapters = [job.adapter.model_dump() for job in load(tmp_path, text)]
    assert [(adapter["r"], adapter["lora_dropout"]) for adapter in adapters] == [(4, 0.5), (8, 0.5)]


def test_null_is_no_sweep(tmp_path: Path) -> None:
    (job,) = load(tmp_path, "  - {name: s, sweep: null}\n")
    assert job.name == "s" and job.sweep is None


def test_nobody_writes_the_choice(tmp_path: Path) -> None:
    """What a job's own JSON has is read as a sweep of these fields."""
    found = problems(tmp_path, "  - {name: a, sweep: {name: s, choice: {seed: 1}}}\n")
    assert {problem.where for problem in found} == {"jobs[0].sweep.name", "jobs[0].sweep.choice"}
    schema = file_schema()
    assert "SweepChoice" not in str(schema) and "zip" in str(schema["$defs"]["Job"])
    assert "sweep" not in schema["$defs"]["Defaults"]["properties"]
    assert "| `sweep` |" not in markdown()


def test_not_in_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "base_model: m\ndefaults: {sweep: {seed: [1, 2]}}\n"
        "jobs: [{name: a, dataset: {path: x.jsonl}}]\n"
    )
    with pytest.raises(JobFileError) as caught:
        load_run_file(file)
    (problem,) = caught.value.problems
    assert problem.fix == "Move `sweep` into the job." and problem.line == 2


def test_a_job_s_name_is_still_needed(tmp_path: Path) -> None:
    assert any("name" in p.where for p in problems(tmp_path, "  - {sweep: {seed: [1, 2]}}\n"))
