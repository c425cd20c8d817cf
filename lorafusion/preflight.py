"""What a valid job file still needs before training: its data, base, targets and folders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lorafusion.adapters.folder import AdapterFolder, read_folder
from lorafusion.adapters.initial import misfits, note_on_base, overwritten_by
from lorafusion.adapters.lora import LoraConfig
from lorafusion.adapters.targets import match_targets
from lorafusion.base_names import base_module_names
from lorafusion.data.counts import rows_left, steps_per_epoch, total_steps
from lorafusion.data.formats import describe_trained
from lorafusion.data.template import read_template
from lorafusion.errors import AdapterError, DataError, ModelError, Problem
from lorafusion.jobs.loading import RunFile
from lorafusion.jobs.schema import DatasetConfig, JobSpec, PathText
from lorafusion.jobs.yaml_tree import Node
from lorafusion.module_names import ModuleNames
from lorafusion.row_counts import RowCount, count_rows

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class JobSummary:
    """One job as it would run.

    Attributes:
        name: The job.
        dataset: Its file.
        rows: Rows to train on, held-out ones left out; None if the file cannot be used.
        rank: Of its adapter, the largest where modules differ; None if its folder cannot be used.
        modules: Linears of the base that it adapts; None if the base could not be looked at.
        steps: Optimizer steps if no row is dropped (a row is, when its answer begins after
            ``max_seq_len``); None if the file cannot be used.
        trains: What of a row is trained, and the type of the rows, in words.
    """

    name: str
    dataset: str
    rows: int | None
    rank: int | None
    modules: int | None
    steps: int | None
    trains: str | None


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
        self._base_model = ""
        self._names: ModuleNames | None = None
        self._sources: dict[str, AdapterFolder | AdapterError] = {}
        self._rows: dict[str, RowCount | DataError] = {}
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
                self._adapter(index, adapter)

    def _part_of_data(self, path: tuple[str | int, ...], node: Node | None) -> None:
        dataset = _valid(DatasetConfig, node)
        if dataset is not None:
            self._count((*path, "path"), dataset)

    def base(self, name: str) -> None:
        self._base_model = name
        try:
            self._names = base_module_names(name)
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
        rows, trains = self._job_rows(index, job)
        self._output(index, job)
        self._starting_point(index, job)
        rank, modules = self._adapter(index, job.adapter)
        return JobSummary(
            name=job.name,
            dataset=job.dataset.path,
            rows=rows,
            rank=rank,
            modules=modules,
            steps=_steps(job, rows) if rows else None,
            trains=trains,
        )

    def _job_rows(self, index: int, job: JobSpec) -> tuple[int | None, str | None]:
        """Rows to train on, and what of them is trained, where these are known."""
        if job.eval.dataset is not None:
            self._count(("jobs", index, "eval", "dataset", "path"), job.eval.dataset)
        found = self._count(("jobs", index, "dataset", "path"), job.dataset)
        if found is None:
            return None, None
        trains = f"{describe_trained(found.type, job.dataset.trained)} ({found.type})"
        try:
            return rows_left(found.rows, val_size=job.eval.val_size), trains
        except DataError as error:
            path = ("jobs", index, "eval", "val_size")
            allowed = f"0 to {found.rows - 1} of the {found.rows} rows"
            fix = "Hold out fewer rows, or name a held-out file in eval.dataset."
            self._add(path, str(error), allowed, fix)
            return None, trains

    def _count(self, path: tuple[str | int, ...], dataset: DatasetConfig) -> RowCount | None:
        """The rows of a file, each read and checked; None where there is a problem."""
        key = dataset.model_dump_json()
        if key not in self._rows:
            try:
                read_template(dataset.chat_template)
                self._rows[key] = count_rows(dataset)
            except DataError as error:
                self._rows[key] = error
        found = self._rows[key]
        if isinstance(found, RowCount):
            return found
        allowed = "rows with the columns of a type (see `type` under `dataset` in the docs)"
        self._add(path, str(found), allowed, "Mend the file, or name another.")
        return None

    def _adapter(self, index: int, adapter: object) -> tuple[int | None, int | None]:
        """Its rank and its number of modules, where they are known."""
        assert isinstance(adapter, LoraConfig)
        source = self._source(index, adapter)
        if adapter.init_from is not None and source is None:
            return None, None
        try:
            for misfit in misfits(adapter, source, self._names):
                path = ("jobs", index, "adapter", misfit.field)
                self._add(path, misfit.found, misfit.allowed, misfit.fix)
            if source is not None:
                return max(shape.rank for shape in source.shapes.values()), len(source.shapes)
            if self._names is None:
                return adapter.r, None
            targets = match_targets(self._names, adapter.target_modules)
            return max(map(adapter.rank_of, targets), default=adapter.r), len(targets)
        except AdapterError as error:
            path = ("jobs", index, "adapter", "target_modules")
            allowed = "linear layers of the base"
            self._add(path, str(error), allowed, "all-linear takes every one but the head.")
            return adapter.r, None

    def _source(self, index: int, adapter: LoraConfig) -> AdapterFolder | None:
        """The folder that an adapter starts from; None if there is none, or it cannot be used."""
        name = adapter.init_from
        if name is None:
            return None
        if name not in self._sources:
            try:
                self._sources[name] = read_folder(Path(name))
            except AdapterError as error:
                self._sources[name] = error
        found = self._sources[name]
        if isinstance(found, AdapterFolder):
            note = note_on_base(found, self._base_model)
            self.notes += [note] if note is not None and note not in self.notes else []
            return found
        fix = "Choose another folder, or remove init_from to start afresh."
        path = ("jobs", index, "adapter", "init_from")
        self._add(path, str(found), "the folder of a LoRA adapter of this base", fix)
        return None

    def _starting_point(self, index: int, job: JobSpec) -> None:
        """An adapter to start from must not be written over by the run."""
        init_from = getattr(job.adapter, "init_from", None)
        spec = self._run.spec
        if init_from is None or spec is None:
            return
        folders = [_folder(spec.output_dir, job) for job in spec.jobs]
        place = overwritten_by(init_from, filter(None, folders))
        if place is not None:
            fix = "Choose another output_dir, or copy the adapter elsewhere."
            path = ("jobs", index, "adapter", "init_from")
            found = f"{init_from}, which lies in {place}, where this run writes its results"
            self._add(path, found, "a folder that the run does not write over", fix)

    def _output(self, index: int, job: JobSpec) -> None:
        folder = _folder(self._run.spec.output_dir if self._run.spec else None, job)
        if folder is None:
            return
        own = job.output_dir is not None
        for reason in _unusable(folder):
            where = ("jobs", index, "output_dir") if own else ("output_dir",)
            fix = "Choose another output_dir, or change the permissions."
            self._add(where, reason, "a folder that can be made and written to", fix)

    def _add(self, path: tuple[str | int, ...], found: str, allowed: str, fix: str) -> None:
        self.problems.append(
            self._run.problem(path, found=found.rstrip("."), allowed=allowed, fix=fix)
        )


def _folder(root: str | None, job: JobSpec) -> Path | None:
    """Where a job's results go; None if only the command line says it."""
    if job.output_dir is None and root is None:
        return None
    return Path(job.output_dir) if job.output_dir else Path(root or "", job.name)


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
