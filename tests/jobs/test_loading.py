"""Job files: what loads, and for what does not, the line, the path and the advice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lorafusion.errors import JobFileError, Problem
from lorafusion.jobs.loading import load_run_file, read_run_file
from lorafusion.jobs.schema import RunSpec

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "jobs" / "examples"
JOB = "jobs:\n  - name: a\n    dataset: {path: x.jsonl}\n"
GOOD = f"base_model: m\n{JOB}"


def load(tmp_path: Path, text: str | bytes) -> RunSpec:
    file = tmp_path / "run.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_run_file(file)


def problems_of(tmp_path: Path, text: str | bytes) -> tuple[Problem, ...]:
    with pytest.raises(JobFileError) as caught:
        load(tmp_path, text)
    return caught.value.problems


def test_the_smallest_file_has_the_documented_defaults(tmp_path: Path) -> None:
    (job,) = load(tmp_path, GOOD).jobs
    assert (job.learning_rate, job.lr_scheduler, job.global_batch_size) == (2e-4, "cosine", 8)
    assert (job.num_epochs, job.max_steps, job.max_seq_len, job.seed) == (None, None, 512, 0)
    assert job.adapter.model_dump()["r"] == 8
    assert (job.eval.val_size, job.eval.every, job.max_bad_steps) == (0, None, 3)


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.name)
def test_every_example_loads(file: Path) -> None:
    assert load_run_file(file).jobs


@pytest.mark.parametrize(
    ("parallel", "where", "allowed"),
    [
        ("{zero: 1}", "parallel.zero", "the moments of the adapters alone, which on 2 ranks"),
        ("{zero: 2, offload: cpu}", "parallel.zero", "the moments and gradients of the adapters"),
        ("{zero: 4}", "parallel.zero", "0 or 3"),
        ("{offload: cpu}", "parallel.offload", "with `zero: 3`"),
        ("{zero: 0, offload: cpu}", "parallel.offload", "with `zero: 3`"),
        ("{zero: 3, offload: nvme}", "parallel.offload", "none or cpu"),
        ("{zero: true}", "parallel.zero", "0 or 3"),
    ],
)
def test_of_zero_only_its_third_stage(
    parallel: str, where: str, allowed: str, tmp_path: Path
) -> None:
    assert load(tmp_path, f"parallel: {{zero: 3, offload: cpu}}\n{GOOD}").parallel.zero == 3
    (problem,) = problems_of(tmp_path, f"parallel: {parallel}\n{GOOD}")
    assert (problem.where, problem.line) == (where, 1)
    assert allowed in problem.allowed


def test_defaults_lie_under_each_job(tmp_path: Path) -> None:
    spec = load(
        tmp_path,
        """
base_model: m
defaults:
  dataset: {type: messages}
  adapter: {r: 4, target_modules: [q_proj, k_proj], bias: none, modules_to_save: null}
  warmup_ratio: 0.1
  learning_rate: 1e-4
jobs:
  - {name: a, dataset: {path: a.jsonl}}
  - name: b
    dataset: {path: b.jsonl, type: null}
    adapter: {target_modules: [v_proj]}
    warmup_ratio: 0
    warmup_steps: 5
""",
    )
    a, b = spec.jobs
    assert (a.dataset.path, a.dataset.type, b.dataset.type) == ("a.jsonl", "messages", None)
    assert a.adapter.model_dump()["target_modules"] == ("q_proj", "k_proj")
    assert b.adapter.model_dump()["target_modules"] == ("v_proj",)
    assert b.adapter.model_dump()["r"] == 4
    assert (a.learning_rate, a.warmup_ratio, b.warmup_steps) == (1e-4, 0.1, 5)


def test_paths_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAFUSION_HOME", "/cache")
    spec = load(tmp_path, GOOD.replace("x.jsonl", "$LORAFUSION_HOME/data/x.jsonl"))
    assert spec.jobs[0].dataset.path == "/cache/data/x.jsonl"


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    assert load(tmp_path, b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode()).jobs


# Each: lines after GOOD (which has 4), then line, path and a phrase of the one problem.
IN_JOB = [
    ("    learning_rat: 1e-4", 5, "jobs[0].learning_rat", "Did you mean `learning_rate`?"),
    ("    zzz: 1", 5, "jobs[0].zzz", "allowed: the fields name, dataset, adapter"),
    ("    r: 8", 5, "jobs[0].r", "`r` belongs under `adapter` of the job"),
    ("    dtype: float32", 5, "jobs[0].dtype", "belongs at the top of the file"),
    ("    bf16: true", 5, "jobs[0].bf16", "`bf16` belongs at the top of the file"),
    ("    adapter: {lr: 8}", 5, "jobs[0].adapter.lr", "`lr` belongs in a job"),
    ("    path: x", 5, "jobs[0].path", "`path` belongs under `dataset` of the job"),
    ("    warmup: 3", 5, "jobs[0].warmup", "called `warmup_ratio` here"),
    ("    adapter: {seed: 8}", 5, "jobs[0].adapter.seed", "belongs in a job"),
    ("    <<: {seed: 1}", 5, "jobs[0].<<", "Put what jobs share under `defaults`"),
    ('    adapter: {r: "8"}', 5, "jobs[0].adapter.r", "Write 8 without quotes"),
    ("    adapter: {r: 8.0}", 5, "jobs[0].adapter.r", "found 8.0; allowed: a whole number >= 1"),
    ("    adapter: {r: 8.0}", 5, "jobs[0].adapter.r", "Write 8."),
    ("    adapter: {r: 8.5}", 5, "jobs[0].adapter.r", "Write a whole number."),
    ("    adapter: {r: true}", 5, "jobs[0].adapter.r", "found true"),
    ("    adapter: {r: 0}", 5, "jobs[0].adapter.r", "rank 0 has nothing to train"),
    ("    adapter: {r: -3}", 5, "jobs[0].adapter.r", "Choose a number in that range"),
    ("    adapter:\n      r: eight", 6, "jobs[0].adapter.r", "found the text 'eight'"),
    ("    adapter: {type: loha}", 5, "jobs[0].adapter.type", "allowed: lora"),
    ("    adapter: {lora_alpha: .inf}", 5, "jobs[0].adapter.lora_alpha", "finite"),
    ("    adapter: {lora_dropout: 1.0}", 5, "jobs[0].adapter.lora_dropout", ">= 0 and < 1"),
    ("    adapter: {modules_to_save: [x]}", 5, "jobs[0].adapter.modules_to_save", "never written"),
    ("    adapter: {use_dora: true}", 5, "jobs[0].adapter.use_dora", "DoRA's"),
    ("    adapter: {bias: all}", 5, "jobs[0].adapter.bias", "biases belong to the base"),
    ("    adapter: {rank_pattern: {q: 0}}", 5, "jobs[0].adapter.rank_pattern.q", "number >= 1"),
    ("    adapter: {rank_pattern: {q: 1.5}}", 5, "jobs[0].adapter.rank_pattern.q", "whole number"),
    ("    adapter: {rank_pattern: {'q(': 1}}", 5, "jobs[0].adapter.rank_pattern", "'q('"),
    ("    adapter: {alpha_pattern: {q: x}}", 5, "jobs[0].adapter.alpha_pattern.q", "a number > 0"),
    ("    adapter: {alpha_pattern: 8}", 5, "jobs[0].adapter.alpha_pattern", "a mapping from text"),
    ("    adapter: {init_from: ''}", 5, "jobs[0].adapter.init_from", "not empty"),
    ("    adapter: {target_modules: []}", 5, "jobs[0].adapter.target_modules", "an empty list"),
    ("    adapter: {target_modules: 3}", 5, "jobs[0].adapter.target_modules", "text or a list"),
    ("    adapter: {target_modules: '['}", 5, "jobs[0].adapter.target_modules", "is no regex"),
    ("    adapter: {target_modules: '((.+)+)+!'}", 5, "jobs[0].adapter.target_modules", "for ever"),
    ("    adapter: {rank_pattern: {'(a*)*b': 1}}", 5, "jobs[0].adapter.rank_pattern", "for ever"),
    ("    adapter: {target_modules: .*}", 5, "jobs[0].adapter.target_modules", "embedding"),
    ("    adapter: {target_modules: lm_head}", 5, "jobs[0].adapter.target_modules", "embedding"),
    (
        "    adapter:\n      target_modules:\n        - q_proj\n        - 3",
        8,
        "jobs[0].adapter.target_modules[1]",
        "allowed: text",
    ),
    (
        "    adapter:\n      target_modules: [q_proj,\n        model.embed_tokens]",
        7,
        "jobs[0].adapter.target_modules[1]",
        "embedding",
    ),
    ('    learning_rate: "1e-4"', 5, "jobs[0].learning_rate", "Write 1e-4 without quotes"),
    ("    learning_rate: .nan", 5, "jobs[0].learning_rate", "Write a finite number"),
    ("    learning_rate: -.inf", 5, "jobs[0].learning_rate", "Write a finite number"),
    ("    learning_rate: 0", 5, "jobs[0].learning_rate", "such as 2e-4"),
    ("    learning_rate:", 5, "jobs[0].learning_rate", "remove the line to use the default"),
    ("    max_grad_norm: 0", 5, "jobs[0].max_grad_norm", "Write null for no clipping"),
    ("    lr_scheduler: cosin", 5, "jobs[0].lr_scheduler", "Did you mean `cosine`?"),
    ("    seed: 99999999999999999999", 5, "jobs[0].seed", "< 9223372036854775808"),
    ("    seed: 1_000", 5, "jobs[0].seed", "Write 1000 without"),
    ("    max_seq_len: 1", 5, "jobs[0].max_seq_len", ">= 2"),
    ("    eval: 64", 5, "jobs[0].eval", "Write `eval: {val_size: 64}`"),
    ("    eval: {val_size: 8, dataset: {path: y}}", 5, "jobs[0].eval.dataset", "one of the two"),
    ("    eval: {every: 8}", 5, "jobs[0].eval.every", "nothing to evaluate on"),
    ("    eval: {dataset: {type: messages}}", 5, "jobs[0].eval.dataset.path", "(required)"),
    ("    warmup_ratio: 0.1\n    warmup_steps: 3", 6, "jobs[0].warmup_steps", "on line 5"),
    ("    name: b", 5, "jobs[0].name", "first on line 3"),
    ("    output_dir: ''", 5, "jobs[0].output_dir", "not empty"),
    ('    output_dir: "a\\0b"', 5, "jobs[0].output_dir", "null character"),
    ("    seed: !!python/name:os.system ''", 5, "jobs[0].seed", "Remove the tag"),
    ("    ? [a]\n    : 1", 5, "jobs[0]", "a key that is a list"),
    ("  - name: a\n    dataset: {path: y}", 5, "jobs[1].name", "jobs[0].name on line 3"),
    ("  - name: A\n    dataset: {path: y}", 5, "jobs[1].name", "Rename one"),
    ("  - name: b", 5, "jobs[1].dataset", "Add `dataset: ...` here or to `defaults`"),
    ("  - dataset: {path: y}", 5, "jobs[1].name", "Add `name: ...`."),
    ("  - b", 5, "jobs[1]", "a mapping with name, dataset"),
    ("capacity: 256", 3, "jobs[0].max_seq_len", "at most 256"),
    ("    max_seq_len: 300\ncapacity: 256", 5, "jobs[0].max_seq_len", "found 300"),
    ("capacity: lots", 5, "capacity", "auto or a whole number >= 1"),
    ("deterministic: yes", 5, "deterministic", "Write true."),
    ("deterministic: 1", 5, "deterministic", "Write true or false."),
    ("recompute: yes", 5, "recompute", "allowed: auto or true or false. Write true."),
    ("recompute: 1", 5, "recompute", "Write true or false."),
    ("learning_rate: 1e-4", 5, "learning_rate", "belongs in a job or in `defaults`"),
    ("lora_r: 8", 5, "lora_r", "`lora_r` belongs in a job or in `defaults`"),
    ("defaults: [a]", 5, "defaults", "a mapping of job fields"),
    ("defaults: {name: a}", 5, "defaults.name", "Move `name` into the jobs"),
    ("defaults: {seed: x}", 5, "defaults.seed", "found the text 'x'"),
    ("base_model: y", 5, "base_model", "Remove line 5 or line 1"),
]


@pytest.mark.parametrize(("extra", "line", "where", "phrase"), IN_JOB)
def test_one_mistake(tmp_path: Path, extra: str, line: int, where: str, phrase: str) -> None:
    text = GOOD.rstrip("\n") + "\n" + extra + "\n"
    (problem,) = problems_of(tmp_path, text)
    assert (problem.line, problem.where) == (line, where)
    assert phrase in str(problem)


@pytest.mark.parametrize(
    "name", ["a/b", "..", ".hidden", "-x", "a b", "", "é", "x" * 65, "a\\nb", "a\\0"]
)
def test_a_name_must_be_fit_for_a_folder(tmp_path: Path, name: str) -> None:
    (problem,) = problems_of(tmp_path, GOOD.replace("name: a", f'name: "{name}"'))
    assert (problem.line, problem.where) == (3, "jobs[0].name")
    assert "1 to 64 letters" in problem.allowed


@pytest.mark.parametrize("name", ["trace", "LOGS", "result.json", "report.html"])
def test_a_name_must_not_be_what_a_run_writes(tmp_path: Path, name: str) -> None:
    (problem,) = problems_of(tmp_path, GOOD.replace("name: a", f"name: {name}"))
    assert problem.where == "jobs[0].name"
    assert "which a run writes itself" in problem.allowed


@pytest.mark.parametrize("value", ["123", "1e4", "true", "null", "1.5"])
def test_a_name_that_yaml_reads_as_something_else(tmp_path: Path, value: str) -> None:
    (problem,) = problems_of(tmp_path, GOOD.replace("name: a", f"name: {value}"))
    assert problem.where == "jobs[0].name"


@pytest.mark.parametrize(
    ("text", "line", "phrase"),
    [
        ("", 1, "an empty file"),
        ("# nothing\n", 1, "an empty file"),
        ("- a\n", 1, "found a list of 1"),
        ("just text", 1, "found the text"),
        ("base_model: m\n", 1, "each job starts with `- name: ...`"),
        ("base_model: m\njobs: []\n", 2, "a list of at least one mapping"),
        ("base_model: m\njobs:\n", 2, "List the jobs"),
        ("base_model: m\njobs: {a: 1}\n", 2, "List the jobs"),
        (JOB, 1, "Add `base_model: ...`"),
        ("base_model: m\njobs: [\n", 3, "broken YAML"),
        ("base_model: m\njobs:\n\t- name: a\n", 3, "spaces, not tabs"),
        ("a: b: c\n", 1, "mapping values are not allowed"),
        (f"{GOOD}---\n{GOOD}", 5, "one file for each run"),
        ("a: *b\n", 1, "undefined alias"),
        ("a: &a [*a]\n", 1, "contain themselves"),
        ("[" * 5000, 1, "nested too deeply"),
        ("a: 1\nb: \x07\n", 2, "control character"),
        (b"a: 1\nb: \xff\n", 2, "not UTF-8"),
        (b"#" * (2 << 20), 1, "very large"),
    ],
)
def test_a_file_that_is_no_job_file(
    tmp_path: Path, text: str | bytes, line: int, phrase: str
) -> None:
    (problem,) = problems_of(tmp_path, text)
    assert problem.line == line
    assert phrase in str(problem)


def test_aliases_cannot_blow_up(tmp_path: Path) -> None:
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    (problem,) = problems_of(tmp_path, "\n".join(["a0: &a0 [1]", *levels]))
    assert "aliases" in problem.found


@pytest.mark.parametrize("kind", ["missing", "folder", "broken link", "under a file"])
def test_a_path_that_is_no_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "broken link":
        path.symlink_to("nowhere")
    elif kind == "under a file":
        path.write_text(GOOD)
        path = path / "x"
    with pytest.raises(JobFileError) as caught:
        load_run_file(path)
    (problem,) = caught.value.problems
    assert problem.file == str(path)
    assert problem.found in ("no such file", "a folder") or "Not a directory" in problem.found


def test_every_problem_comes_out_at_once(tmp_path: Path) -> None:
    text = """\
base_mode: m
capacity: 256
defaults:
  max_seq_len: 300
  learning_rate: "1e-4"
  adapter: {use_dora: true}
jobs:
  - name: a/b
    dataset: x.jsonl
    adapter: {r: 0, target_modules: [lm_head]}
  - name: same
    seed: 1
    seed: 2
    dataset: {path: x, typ: messages}
    output_dir: out
  - name: Same
    dataset: {path: x}
    output_dir: out/sub
    learning_rate: 1e-3
"""
    found = [(problem.line, problem.where) for problem in problems_of(tmp_path, text)]
    assert found == [
        (1, "base_mode"),
        (1, "base_model"),
        (4, "defaults.max_seq_len"),
        (5, "defaults.learning_rate"),
        (6, "defaults.adapter.use_dora"),
        (8, "jobs[0].name"),
        (9, "jobs[0].dataset"),
        (10, "jobs[0].adapter.r"),
        (10, "jobs[0].adapter.target_modules[0]"),
        (13, "jobs[1].seed"),
        (14, "jobs[1].dataset.typ"),
        (16, "jobs[2].name"),
    ]


@pytest.mark.parametrize(
    ("first", "second", "line", "phrase"),
    [
        ("out", "out", 9, "the same folder as jobs[0] (line 4)"),
        ("out", "./out/", 9, "the same folder"),
        ("out", "OUT", 9, "the same folder"),
        ("out", "out/sub", 9, "a folder inside that of jobs[0]"),
        ("out/sub", "out", 6, "a folder inside that of jobs[1]"),
        ("runs/b", "", 6, "the same folder as jobs[1]"),
        ("runs", "", 6, "a folder around that of jobs[1]"),
        ("link/sub", "out/sub", 9, "the same folder"),
    ],
)
def test_jobs_cannot_share_a_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: str,
    second: str,
    line: int,
    phrase: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    text = "base_model: m\noutput_dir: runs\njobs:\n"
    for name, folder in (("a", first), ("b", second)):
        text += f"  - name: {name}\n    dataset: {{path: x}}\n"
        text += f"    output_dir: {folder}\n" if folder else ""
    problems = problems_of(tmp_path, text)
    assert (line, True) in [(problem.line, phrase in problem.found) for problem in problems]


def test_folders_of_their_own_are_fine(tmp_path: Path) -> None:
    text = GOOD + "    output_dir: out/a\n  - {name: b, dataset: {path: x}, output_dir: out/ab}\n"
    assert len(load(tmp_path, text).jobs) == 2


def test_lines_are_counted_as_editors_do(tmp_path: Path) -> None:
    # YAML 1.1 also ends a line at these two; editors and compilers do not.
    text = GOOD.replace("x.jsonl", '"\u2028\x85"').replace("\n", "\r\n") + "    zzz: 1\r\n"
    (problem,) = problems_of(tmp_path, text)
    assert (problem.line, problem.where) == (5, "jobs[0].zzz")


def test_job_files_are_read_without_torch() -> None:
    code = "import sys, lorafusion.jobs.loading, lorafusion.jobs.reference\n"
    code += "sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_later_check_can_point_at_lines(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(GOOD + "defaults:\n  adapter: {r: 4}\n")
    run = read_run_file(file)

    def place(*path: str | int) -> tuple[int, str]:
        problem = run.problem(path, found="", allowed="", fix="")
        return problem.line, problem.where

    assert place("jobs", 0, "dataset", "path") == (4, "jobs[0].dataset.path")
    assert place("jobs", 0, "adapter", "r") == (6, "defaults.adapter.r")
    assert place("jobs", 0, "adapter", "target_modules") == (6, "defaults.adapter")
    assert place("output_dir") == (1, "")
