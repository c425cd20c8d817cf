"""The settings of a run in Python: checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

from lorafusion.api.check import as_tree, raise_all, validated
from lorafusion.errors import Problem
from lorafusion.jobs.loading import load_run_file
from lorafusion.jobs.schema import JobSpec, RunSpec

if TYPE_CHECKING:
    from lorafusion.launch.local import Existing

SOURCE = "lorafusion.train"
_RENAMED = {"base": "base_model", "output": "output_dir"}


class RunSettings(TypedDict, total=False):
    """How jobs are run. What is left out is taken from the job file, or is the default there."""

    dtype: Literal["float32", "bfloat16", "float64"]
    """Number format of the base and of its activations."""
    capacity: int | Literal["auto"]
    """Most tokens in one microbatch."""
    deterministic: bool
    """Bit-exact: a job gives equal bytes alone and with any neighbours. Costs speed."""
    recompute: Literal["auto"] | bool
    """Keep each layer's input alone and repeat its forward in the backward: less memory, more time.
    "auto": where memory asks for it."""
    threads: int | None
    """CPU threads. None: as many as there are cores."""
    resume: bool
    """Go on from each job's newest checkpoint in the output folder."""
    overwrite: bool
    """Replace an earlier run's results in the output folder."""
    trace: bool | None
    """What is kept of what is done when, in the output folder's ``trace``: None: a line for each
    forward, backward and step; True: torch's profile of some microbatches too; False: nothing."""


def load_jobs(path: str | Path) -> RunSpec:
    """Read a job file: its jobs, its base and how they are run.

    Raises:
        JobFileError: With every problem in the file.
    """
    return load_run_file(Path(path))


def run_spec(
    jobs: RunSpec | JobSpec | Sequence[JobSpec],
    base: object,
    output: str | Path | None,
    settings: RunSettings,
) -> tuple[RunSpec, Existing]:
    """What to run, and what to do with an earlier run's results.

    Raises:
        JobError: With every problem of the arguments.
    """
    given: dict[str, Any] = {"base": base, "output": output, **settings}
    existing, problems = _existing(bool(given.pop("resume", 0)), bool(given.pop("overwrite", 0)))
    given = {name: value for name, value in given.items() if value is not None}
    if isinstance(jobs, RunSpec):
        fields = {_argument(name): getattr(jobs, name) for name in jobs.model_fields_set}
        given = {**fields, **given}
    else:
        given["jobs"] = (jobs,) if isinstance(jobs, JobSpec) else jobs
    problems += [*_problems_of_base(given), *_problems_of_jobs(given)]
    if "output" not in given:
        fix = 'Give a folder, such as output="runs/first"; a folder per job is made in it.'
        problems.append(Problem(SOURCE, 0, "output", "nothing", "a folder (required)", fix))
    raise_all(problems)  # the checks below need jobs
    tree = as_tree({_RENAMED.get(name, name): value for name, value in given.items()})
    fields = validated(RunSpec, tree, source=SOURCE)
    return RunSpec.model_validate({**fields, "jobs": tuple(given["jobs"])}), existing


def _argument(field: str) -> str:
    return next((argument for argument, name in _RENAMED.items() if name == field), field)


def _existing(resume: bool, overwrite: bool) -> tuple[Existing, list[Problem]]:
    if resume and overwrite:
        words = ("both resume and overwrite", "one of the two", "Leave one out.")
        return "refuse", [Problem(SOURCE, 0, "resume", *words)]
    return ("resume" if resume else "overwrite" if overwrite else "refuse"), []


def _problems_of_base(given: dict[str, Any]) -> list[Problem]:
    base = given.get("base")
    if isinstance(base, str | Path):
        return []
    allowed = "the folder or hub id of a causal LM"
    if base is None:
        words = ("nothing", f"{allowed} (required)", 'Give it: base="folder-or-hub-id".')
        return [Problem(SOURCE, 0, "base", *words)]
    found, fix = f"a {type(base).__name__}", "Give its path."
    if hasattr(base, "config"):
        # Its layers would be wrapped and frozen under its owner's hands, and adapters, checkpoints
        # and resuming name the base that they belong to.
        found += ", a loaded model"
        name = getattr(base.config, "_name_or_path", None) or "FOLDER"
        fix = f'The run loads its own copy: give base="{name}", or save_pretrained it first.'
    return [Problem(SOURCE, 0, "base", found, allowed, fix)]


def _problems_of_jobs(given: dict[str, Any]) -> list[Problem]:
    jobs = given["jobs"]
    fix = "Make each with lorafusion.Job(...), or read them with lorafusion.load_jobs(path)."
    if not isinstance(jobs, list | tuple) or not jobs:
        found = "an empty list" if isinstance(jobs, list | tuple) else f"a {type(jobs).__name__}"
        return [Problem(SOURCE, 0, "jobs", found, "a job, or a list of jobs", fix)]
    return [
        Problem(SOURCE, 0, f"jobs[{index}]", f"a {type(job).__name__}", "a Job", fix)
        for index, job in enumerate(cast("Sequence[object]", jobs))
        if not isinstance(job, JobSpec)
    ]
