"""Tables of the store's jobs, as they are and as they change."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lorafusion.cli import figures

if TYPE_CHECKING:
    from lorafusion.jobs.store.database import Database
    from lorafusion.jobs.store.records import JobRecord, WorkerRecord

Names = Annotated[list[str], typer.Argument(help="Ids, or names: the newest of a name.")]

_COLOURS = {
    "running": "cyan",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "yellow",
    "paused": "yellow",
    "recovering": "magenta",
}
_SILENT_S = 60.0
"""A worker that has said nothing for so long is taken for gone."""
_LOOK_S = 0.5


def waiting_reason(job: JobRecord, workers: Sequence[WorkerRecord], now: float) -> str | None:
    """Why a job waits, where the store does not say."""
    if job.state not in ("pending", "recovering") or job.reason is not None:
        return job.reason
    alive = [worker for worker in workers if now - worker.seen_at < _SILENT_S]
    if any(worker.group == job.group for worker in alive):
        return None
    settings = job.run
    return f"waits for a worker with base {job.base} and {settings}" if alive else "no worker runs"


def jobs_table(jobs: Sequence[JobRecord], workers: Sequence[WorkerRecord]) -> Table:
    """A row a job."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("id", "state", "steps", "loss", "since", "reason"):
        right = name in ("steps", "loss", "since")
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "reason")
    now = time.time()
    for job in jobs:
        steps = f"{job.steps}/{job.total_steps}" if job.total_steps else "-"
        table.add_row(
            job.id,
            Text(job.state.value, style=_COLOURS.get(job.state.value, "")),
            steps,
            "-" if job.loss is None else figures.loss(job.loss),
            figures.seconds(max(0.0, now - job.changed_at)),
            Text(waiting_reason(job, workers, now) or ""),
        )
    return table


def plain(job: JobRecord) -> Mapping[str, Any]:
    """For JSON; times are UTC, and the settings are objects."""
    import json

    values = asdict(job) | {"spec": json.loads(job.spec), "run": json.loads(job.run)}
    for name in ("submitted_at", "started_at", "ended_at", "changed_at", "lease_until"):
        at = values[name]
        values[name] = None if at is None else datetime.fromtimestamp(at, UTC).isoformat()
    return values


class JobsView:
    """A table that is renewed on a terminal; elsewhere a line where a job's state changes."""

    def __init__(self, *, err: bool = False) -> None:
        self._console = Console(stderr=err, highlight=False)
        self._live: Live | None = None
        self._shown: dict[str, str] = {}

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, jobs: Sequence[JobRecord], workers: Sequence[WorkerRecord]) -> None:
        """How they stand."""
        if self._live is not None:
            self._live.update(jobs_table(jobs, workers), refresh=True)
            return
        for job in jobs:
            if self._shown.get(job.id) != job.state.value:
                self._shown[job.id] = job.state.value
                reason = "" if job.reason is None else f": {job.reason}"
                line = f"{job.id} {job.state.value}{reason}"
                self._console.print(line, markup=False, soft_wrap=True)


def follow_to_the_end(database: Database, ids: Sequence[str], view: JobsView) -> list[JobRecord]:
    """Show jobs until all have ended; returns them."""
    from lorafusion.jobs.store.reading import list_jobs, list_workers

    wanted = set(ids)
    with view:
        while True:
            jobs = [job for job in list_jobs(database) if job.id in wanted]
            view.show(jobs, list_workers(database))
            if all(job.ended for job in jobs):
                return jobs
            time.sleep(_LOOK_S)
