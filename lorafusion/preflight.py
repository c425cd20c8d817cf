"""What a valid job file still needs before training: its data, base, targets and folders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lorafusion.adapters.targets import match_targets
from lorafusion.base_names import base_module_names
from lorafusion.data.counts import rows_left, steps_per_epoch, total_steps
from lorafusion.errors import AdapterError, DataError, ModelError, Problem
from lorafusion.jobs.loading import RunFile
from lorafusion.jobs.schema import DatasetConfig, JobSpec, PathText
from lorafusion.jobs.yaml_tree import Node
from lorafusion.row_counts import count_rows

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class JobSummary:
    """One job as it would run.

    Attributes:
        name: The job.
        dataset: Its file.
        rows: Rows to train on, held-out ones left out; None if the file cannot be used.
        rank: Of its adapter, where the method has one.
        modules: Linears of the base that it adapts; None if the base could not be looked at.
        steps: Optimizer steps if no row is dropped (a row is, when its answer begins after
            ``max_seq_len``); None if the file cannot be used.
    """

    name: str
    dataset: str
    rows: int | None
    rank: int | None
    modules: int | None
    steps: int | None


@dataclass(frozen=True)
class Preflight:
    """What was found: problems that stop the run, notes that do not, the jobs."""

    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    jobs: tuple[JobSummary, ...]


def check_run_file(run: RunFile) -> Preflight:
    """Look at all that a run needs, and collect every problem. Reads the data, not the weights.

    Of a file that has problems itself, the parts that are right are looked at all the same.
    """
    check = _Check(run)
    jobs: tuple[JobSummary, ...] = ()
    if run.spec is not None:
        check.base(run.spec.base_model)
        jobs = tuple(check.job(index, job) for index, job in enumerate(run.spec.jobs))
    else:
        check.sound_parts()
    # What several jobs take from the defaults points at the same line: once is enough.
    problems = dict.fromkeys((*run.problems, *check.problems))
    by_line = sorted(problems, key=lambda problem: problem.line)
    return Preflight(tuple(by_line), (*run.notes, *check.notes), jobs)


class _Check:
    def __init__(self, run: RunFile) -> None:
        self._run = run
        self._targets: _Targets | None = None
        self._rows: dict[DatasetConfig, int | DataError] = {}
        self.problems: list[Problem] = []
        self.notes: list[str] = []

    def sound_parts(self) -> None:
        """The base, datasets and targets that can be read, where other fields are wrong."""
        base = _valid(PathText, self._run.tree.child("base_model"))
        if base is not None:
            self.base(base)
        jobs = self._run.tree.child("jobs")
        for index, job in enumerate(jobs.items() if jobs else ()):
            held_out = job.child("eval")
            self._part_of_data(("jobs", index, "dataset"), job.child("dataset"))
            if held_out is not None:
                self._part_of_data(("jobs", index, "eval", "dataset"), held_out.child("dataset"))
            adapter = _valid(JobSpec.model_fields["adapter"].annotation, job.child("adapter"))
            if adapter is not None:
                self._modules(index, adapter)

    def _part_of_data(self, path: tuple[str | int, ...], node: Node | None) -> None:
        dataset = _valid(DatasetConfig, node)
        if dataset is not None:
            self._count((*path, "path"), dataset)

    def base(self, name: str) -> None:
        try:
            self._targets = _Targets(name)
        except ModelError as error:
            unreachable = isinstance(error.__cause__, OSError)
            if unreachable and _HUB_ID.fullmatch(name) and not Path(name).exists():
                self.notes.append(
                    f"base_model {name} is not in the local cache and the hub did not give it: "
                    "neither it nor target_modules were checked"
                )
                return
            allowed = "a causal LM: a Hugging Face hub id, or a folder with a config.json"
            self._add(("base_model",), str(error), allowed, "Choose another base_model.")

    def job(self, index: int, job: JobSpec) -> JobSummary:
        rows = self._job_rows(index, job)
        self._output(index, job)
        return JobSummary(
            name=job.name,
            dataset=job.dataset.path,
            rows=rows,
            rank=getattr(job.adapter, "r", None),
            modules=self._modules(index, job.adapter),
            steps=_steps(job, rows) if rows else None,
        )

    def _job_rows(self, index: int, job: JobSpec) -> int | None:
        if job.eval.dataset is not None:
            self._count(("jobs", index, "eval", "dataset", "path"), job.eval.dataset)
        rows = self._count(("jobs", index, "dataset", "path"), job.dataset)
        if rows is None:
            return None
        try:
            return rows_left(rows, val_size=job.eval.val_size)
        except DataError as error:
            path = ("jobs", index, "eval", "val_size")
            fix = "Hold out fewer rows, or name a held-out file in eval.dataset."
            self._add(path, str(error), f"0 to {rows - 1} of the {rows} rows", fix)
            return None

    def _count(self, path: tuple[str | int, ...], dataset: DatasetConfig) -> int | None:
        """The rows of a file, each read and checked; None where there is a problem."""
        if dataset not in self._rows:
            try:
                self._rows[dataset] = count_rows(dataset)
            except DataError as error:
                self._rows[dataset] = error
        found = self._rows[dataset]
        if isinstance(found, int):
            return found
        allowed = "a jsonl file whose rows have prompt and completion, or messages"
        self._add(path, str(found), allowed, "Mend the file, or name another.")
        return None

    def _modules(self, index: int, adapter: object) -> int | None:
        if self._targets is None:
            return None
        try:
            return self._targets.count(getattr(adapter, "target_modules", "all-linear"))
        except AdapterError as error:
            path = ("jobs", index, "adapter", "target_modules")
            allowed = "linear layers of the base"
            self._add(path, str(error), allowed, "all-linear takes every one but the head.")
            return None

    def _output(self, index: int, job: JobSpec) -> None:
        root = self._run.spec.output_dir if self._run.spec else None
        if job.output_dir is None and root is None:
            return  # it comes from the command line
        own = job.output_dir is not None
        folder = Path(job.output_dir) if job.output_dir else Path(root or "", job.name)
        for reason in _unusable(folder):
            where = ("jobs", index, "output_dir") if own else ("output_dir",)
            fix = "Choose another output_dir, or change the permissions."
            self._add(where, reason, "a folder that can be made and written to", fix)

    def _add(self, path: tuple[str | int, ...], found: str, allowed: str, fix: str) -> None:
        self.problems.append(
            self._run.problem(path, found=found.rstrip("."), allowed=allowed, fix=fix)
        )


class _Targets:
    """Which modules of the base a job adapts, found on a model without weights."""

    def __init__(self, base_model: str) -> None:
        self._names = base_module_names(base_model)

    def count(self, target_modules: str | tuple[str, ...]) -> int:
        return len(match_targets(self._names, target_modules))


def _valid(kind: Any, node: Node | None) -> Any:
    """What ``node`` says as a ``kind``; None if it is absent, or wrong and so reported already."""
    if node is None:
        return None
    try:
        return TypeAdapter(kind).validate_python(node.plain(), strict=True)
    except ValidationError:
        return None


def _steps(job: JobSpec, rows: int) -> int:
    per_epoch = steps_per_epoch(rows, job.global_batch_size)
    return total_steps(per_epoch, num_epochs=job.num_epochs, max_steps=job.max_steps)


def _unusable(folder: Path) -> Iterator[str]:
    """Why ``folder`` cannot be written to, looking at the deepest part of it that exists."""
    for place in (folder, *folder.absolute().parents):
        if os.path.lexists(place):
            if not place.is_dir():
                yield f"{place}, which is no folder"
            elif not os.access(place, os.W_OK | os.X_OK):
                yield f"{place}, which is not writable"
            return
