"""What a server's ranks are told: a file of its own, because they have no job file to compare.

The store's URL is not in it, since it may hold a password: it stands in the environment.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from lorafusion.files import write_text_atomic
from lorafusion.jobs.loading import RunFile
from lorafusion.jobs.schema import RunSpec
from lorafusion.jobs.yaml_tree import Node
from lorafusion.launch.store_worker import WorkerOptions

__all__ = ["read_served", "read_worker", "served_run", "write_served"]


def served_run(base_model: str, **settings: object) -> RunSpec:
    """A run that begins without jobs."""
    place = Path(base_model)
    base = str(place.absolute()) if place.exists() else base_model
    return RunSpec.model_construct(base_model=base, jobs=(), **settings)


def write_served(path: Path, run: RunSpec, worker: WorkerOptions) -> None:
    """Write it whole."""
    settings = json.loads(run.model_dump_json(exclude={"jobs"}, exclude_unset=True))
    inside = worker.workspace
    how = asdict(worker) | {"workspace": None if inside is None else str(inside.absolute())}
    write_text_atomic(path, json.dumps({"run": settings, "worker": how}, indent=2) + "\n")


def read_served(path: Path) -> RunFile:
    """The run in it, as ranks expect it of a job file."""
    run = served_run(**json.loads(path.read_text())["run"])
    return RunFile(str(path), Node({}, 1, ""), run, ())


def read_worker(path: Path) -> WorkerOptions:
    """How its jobs are worked on."""
    how = WorkerOptions(**json.loads(path.read_text())["worker"])
    return how if how.workspace is None else replace(how, workspace=Path(how.workspace))
