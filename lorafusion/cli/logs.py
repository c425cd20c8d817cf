"""``lorafusion logs ID``: what happened to a job, and its steps."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorafusion.cli.store_options import Store, store_url

if TYPE_CHECKING:
    from lorafusion.jobs.store.database import Database

_LOOK_S = 0.5


def command(
    name: Annotated[str, typer.Argument(help="Id, or name: the newest of a name.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job ends.")] = False,
    store: Store = "",
) -> None:
    """Print what happened to a job, in the order of time: its states, notes, steps and evals."""
    from lorafusion.jobs.store.database import Database
    from lorafusion.jobs.store.reading import find

    database = Database(store_url(store))
    job = find(database, name)
    steps = _Steps(Path(job.folder) / "metrics.jsonl")
    seen = 0
    while True:
        job = find(database, job.id)  # before what it wrote is read: nothing comes after its end
        seen, lines = _new(database, job.id, seen)
        for at, line in sorted([*lines, *steps.new()]):
            typer.echo(f"{datetime.fromtimestamp(at):%H:%M:%S} {line}")
        if job.ended or not follow:
            return
        time.sleep(_LOOK_S)


def _new(database: Database, job: str, seen: int) -> tuple[int, list[tuple[float, str]]]:
    from lorafusion.jobs.store.reading import events_of

    events = events_of(database, job, after=seen)
    last = max([seen, *(event.seq for event in events)])
    return last, [(event.at, event.text) for event in events]


class _Steps:
    """The lines of a metrics file that were not read yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> Iterator[tuple[float, str]]:
        """Whole lines alone: the last may be in the middle of being written."""
        if not self._path.exists():
            return
        size = self._path.stat().st_size
        if size < self._offset:  # begun anew, from an earlier checkpoint
            self._offset = 0
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                record = json.loads(line)
                yield float(record["time"]), _said(record)


def _said(record: dict[str, Any]) -> str:
    loss = "not finite" if record["loss"] is None else f"{record['loss']:.4f}"
    if record["kind"] == "eval":
        return f"step {record['step']}: held-out loss {loss}"
    return f"step {record['step']}: loss {loss}, rate {record['learning_rate']:.2e}"
