"""What a waiting job says it waits for."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lorafusion.cli.store_views import waiting_reason
from lorafusion.jobs.schema import DatasetConfig, JobSpec, RunSpec
from lorafusion.jobs.store.claims import Claims
from lorafusion.jobs.store.database import Database
from lorafusion.jobs.store.reading import list_jobs, list_workers
from lorafusion.jobs.store.submitting import Submission, submit
from lorafusion.launch.store_worker import new_worker


def spec(base: str, **settings: object) -> RunSpec:
    job = JobSpec(name="a", dataset=DatasetConfig(path="rows.jsonl"))
    return RunSpec(base_model=base, jobs=(job,), **settings)


@pytest.mark.parametrize(
    ("served", "words"),
    [
        (None, "no worker runs"),
        (spec("org/other"), "waits for a worker with base org/base"),
        (spec("org/base", deterministic=True), "waits for a worker with base org/base"),
        (spec("org/base"), None),
    ],
)
def test_a_job_says_what_it_waits_for(
    served: RunSpec | None, words: str | None, tmp_path: Path
) -> None:
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    submit(database, Submission(spec("org/base"), "jobs.yaml", tmp_path))
    if served is not None:
        claims = Claims(database, new_worker(served))
        claims.enter()
        if words is not None:
            assert not claims.claim(5)
    (job,) = list_jobs(database)
    reason = waiting_reason(job, list_workers(database), time.time())
    assert reason == words if words is None else words in str(reason)
