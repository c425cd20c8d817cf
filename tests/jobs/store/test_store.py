"""The store on SQLite and on PostgreSQL: submit, claim, lose, take over, ask, end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lorafusion.errors import LostClaimError, StoreError
from lorafusion.jobs.schema import JobSpec
from lorafusion.jobs.store.asking import ask
from lorafusion.jobs.store.claims import Claims, Progress
from lorafusion.jobs.store.database import Database
from lorafusion.jobs.store.reading import events_of, find, list_jobs, list_workers
from lorafusion.jobs.store.records import JobRecord
from lorafusion.jobs.store.states import FOLLOWS, State, Wanted
from lorafusion.jobs.store.submitting import Submission, group_of, submit
from tests.jobs.store.conftest import run_spec

Submit = Callable[..., list[JobRecord]]
MakeWorker = Callable[..., Claims]


def states(database: Database) -> dict[str, str]:
    return {job.name: job.state.value for job in list_jobs(database)}


def said(database: Database, job: str) -> list[str]:
    return [event.text for event in events_of(database, job)]


def test_what_is_submitted_is_there_in_its_order(database: Database, submitted: Submit) -> None:
    first, second = submitted("a", "b")
    (third,) = submitted("a", priority=3)
    assert [job.id for job in list_jobs(database)] == [first.id, second.id, third.id]
    assert len({first.id, second.id, third.id}) == 3
    assert first.submission == second.submission != third.submission
    assert JobSpec.model_validate_json(second.spec).name == "b"
    assert (second.state, second.wanted, second.steps) == (State.PENDING, Wanted.RUN, 0)
    assert find(database, "a").id == third.id  # the newest of a name
    assert find(database, first.id) == first
    assert said(database, second.id) == ["submitted from jobs.yaml"]
    assert [job.name for job in list_jobs(database, newest=2)] == ["b", "a"]
    with pytest.raises(StoreError, match="has no job 'c'; `lorafusion list`"):
        find(database, "c")


def test_a_key_is_taken_once(database: Database, submitted: Submit) -> None:
    assert submitted("a", "b", key="k") == submitted("a", "b", key="k")
    assert len(list_jobs(database)) == 2
    with pytest.raises(StoreError, match="key 'k' is that of other jobs"):
        submitted("a", key="k")


def test_paths_mean_the_same_elsewhere(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("")
    (job,) = submit(database, Submission(run_spec("a"), "f", Path("jobs")))
    assert JobSpec.model_validate_json(job.spec).dataset.path == str(tmp_path / "rows.jsonl")
    assert job.folder == str(tmp_path / "jobs" / job.id)
    assert job.base == "org/base"


def test_groups() -> None:
    same = group_of(run_spec("a", threads=3, capacity=50))
    assert same == group_of(run_spec("b", "c"))
    assert len({same, *(group_of(run_spec("a", **s)) for s in ({"dtype": "float64"},))}) == 2
    assert group_of(run_spec("a", deterministic=True)) != same


def test_a_life(database: Database, submitted: Submit, worker: MakeWorker) -> None:
    (job,) = submitted("a")
    claims = worker("w")
    (taken,) = claims.claim(5)
    assert (taken.id, taken.state, taken.worker, taken.claim) == (job.id, State.PLANNED, "w", 1)
    assert claims.claim(5) == []
    claims.move(job.id, State.RUNNING)
    claims.progress({job.id: Progress(3, 9, 1.5)})
    assert claims.renew() == {job.id: Wanted.RUN}
    now = find(database, job.id)
    assert (now.steps, now.total_steps, now.loss) == (3, 9, 1.5)
    assert now.started_at is not None and now.ended_at is None
    claims.move(job.id, State.SUCCEEDED)
    assert claims.held == frozenset() and claims.renew() == {}
    ended = find(database, job.id)
    assert ended.ended and ended.worker is None and ended.ended_at is not None
    assert said(database, job.id)[1:] == ["planned", "running", "succeeded"]
    claims.leave()
    assert list_workers(database) == []


def test_priority_then_age_then_group(
    database: Database, submitted: Submit, worker: MakeWorker, tmp_path: Path
) -> None:
    submitted("old", "older")
    submitted("urgent", priority=1)
    submit(database, Submission(run_spec("other", dtype="float64"), "f", tmp_path))
    claims = worker("w")
    assert [job.name for job in claims.claim(2)] == ["urgent", "old"]
    assert [job.name for job in claims.claim(2)] == ["older"]
    assert states(database)["other"] == "pending"


def test_a_worker_that_says_nothing_loses_its_jobs(
    database: Database, submitted: Submit, worker: MakeWorker
) -> None:
    (job,) = submitted("a")
    slow, other = worker("slow", lease_s=0.3), worker("other")
    slow.claim(1)
    slow.move(job.id, State.RUNNING)
    assert other.claim(1) == []
    time.sleep(0.4)
    (taken,) = other.claim(1)
    assert (taken.worker, taken.claim, taken.state) == ("other", 2, State.PLANNED)
    assert any(text.startswith("recovering: worker slow said") for text in said(database, job.id))
    # It wakes up, and nothing that it says counts.
    with pytest.raises(LostClaimError, match="not this worker's any more"):
        slow.move(job.id, State.SUCCEEDED)
    slow.progress({job.id: Progress(99, 99, None)})
    assert slow.renew() == {} and slow.held == frozenset()
    slow.leave()
    now = find(database, job.id)
    assert (now.state, now.worker, now.steps) == (State.PLANNED, "other", 0)


def test_a_lease_that_is_renewed_holds(submitted: Submit, worker: MakeWorker) -> None:
    submitted("a")
    claims, other = worker("w", lease_s=0.4), worker("other")
    (job,) = claims.claim(1)
    for _ in range(4):
        time.sleep(0.2)
        assert claims.renew() == {job.id: Wanted.RUN}
        assert other.claim(1) == []


def test_a_worker_that_leaves_gives_its_jobs_back(
    database: Database, submitted: Submit, worker: MakeWorker
) -> None:
    submitted("a", "b", "c")
    claims = worker("w")
    a, b, c = claims.claim(3)
    claims.move(a.id, State.RUNNING)
    ask(database, "b", Wanted.CANCEL)
    ask(database, "c", Wanted.PAUSE)
    assert states(database) == {"a": "running", "b": "planned", "c": "planned"}
    assert claims.renew() == {a.id: Wanted.RUN, b.id: Wanted.CANCEL, c.id: Wanted.PAUSE}
    claims.leave()
    assert states(database) == {"a": "recovering", "b": "cancelled", "c": "paused"}


@pytest.mark.parametrize("wanted", [Wanted.CANCEL, Wanted.PAUSE])
def test_a_job_that_waits_is_changed_at_once(
    database: Database, submitted: Submit, worker: MakeWorker, wanted: Wanted
) -> None:
    submitted("a")
    job = ask(database, "a", wanted)
    assert job.state.value == {"cancel": "cancelled", "pause": "paused"}[wanted.value]
    assert worker("w").claim(1) == []
    if wanted is Wanted.CANCEL:
        with pytest.raises(StoreError, match=r"has ended \(cancelled\) and cannot be resumed"):
            ask(database, "a", Wanted.RUN)
    else:
        assert ask(database, "a", Wanted.RUN).state is State.PENDING
        assert worker("v").claim(1)[0].id == job.id


def test_a_wish_can_be_taken_back(
    database: Database, submitted: Submit, worker: MakeWorker
) -> None:
    submitted("a")
    claims = worker("w")
    (job,) = claims.claim(1)
    ask(database, job.id, Wanted.PAUSE)
    ask(database, job.id, Wanted.RUN)
    assert claims.renew() == {job.id: Wanted.RUN}
    assert said(database, job.id)[-2:] == ["asked to be paused", "asked to be resumed"]


def test_what_was_asked_of_a_dead_worker_is_done(
    database: Database, submitted: Submit, worker: MakeWorker
) -> None:
    submitted("a")
    claims = worker("w", lease_s=0.1)
    (job,) = claims.claim(1)
    claims.move(job.id, State.RUNNING)
    time.sleep(0.2)
    assert ask(database, "a", Wanted.CANCEL).state is State.CANCELLED


@pytest.mark.parametrize("count", [6])
def test_no_job_is_taken_twice(url: str, database: Database, submitted: Submit, count: int) -> None:
    """Six workers claim at once, each with a connection of its own."""
    submitted(*(f"j{i}" for i in range(60)))
    from lorafusion.jobs.store.claims import Worker

    taken: dict[str, list[str]] = {}

    def work(name: str) -> None:
        own = Database(url)
        claims = Claims(own, Worker(name, "h", 1, group_of(run_spec("x")), "org/base"))
        claims.enter()
        mine = taken.setdefault(name, [])
        while found := claims.claim(3):
            mine += [job.id for job in found]
        own.close()

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = [job for mine in taken.values() for job in mine]
    assert len(every) == len(set(every)) == 60
    assert {job.claim for job in list_jobs(database)} == {1}


def test_every_state_can_be_reached_and_ended() -> None:
    reached = {State.PENDING}
    for _ in State:
        reached |= {later for state in reached for later in FOLLOWS[state]}
    assert reached == set(State)


@pytest.mark.parametrize(
    "text", ["nothing", "mysql://x", "postgresql+psycopg://u:secret@127.0.0.1:1/x"]
)
def test_stores_that_cannot_be_opened(text: str) -> None:
    with pytest.raises(StoreError) as caught:
        Database(text)
    assert "secret" not in str(caught.value)
