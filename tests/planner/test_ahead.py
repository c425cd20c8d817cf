"""The planner in another process: the same plans, no hang, no process left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafusion.errors import PlanError
from lorafusion.planner.ahead import Ahead
from lorafusion.planner.plan import Limits, Plan
from lorafusion.planner.queue import Batch, JobQueue
from lorafusion.planner.request import Request, read_answer, write_error
from lorafusion.planner.windows import next_window
from tests.planner import strategies

ROOT = Path(__file__).parents[2]
LIMITS = Limits(12, 2, segment_load=1)


def queue(name: str, steps: int = 5, longest: int = 11) -> JobQueue:
    batches = (Batch(t, (4, 2, 7), (longest, 3, 5), (1, 0, 5)) for t in range(1, steps + 1))
    return JobQueue(name, tuple(batches), {0: Batch(0, (1,), (2,))})


QUEUES = (queue("größe"), queue("b", 7))


def children(parent: int) -> list[int]:
    """Processes of a parent that have not ended."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, of = path.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(of) == parent and state != "Z":
            found.append(int(path.parent.name))
    return found


def workers() -> list[int]:
    def is_worker(pid: int) -> bool:
        try:
            return b"lorafusion.planner.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):  # it has ended since it was listed
            return False

    return [pid for pid in children(os.getpid()) if is_worker(pid)]


def until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    """Whether it becomes true; there is no other way to wait for other processes' ends."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def python(code: str) -> list[str]:
    """A command that runs ``code`` in place of the worker."""
    return [sys.executable, "-c", code]


def ask(ahead: Ahead, queues: tuple[JobQueue, ...] = QUEUES, **more: Any) -> Plan:
    ahead.submit(queues, LIMITS, **{"max_places": 9, **more})
    return ahead.take()


# What is asked, and what is answered.


@settings(max_examples=100)
@given(
    strategies.job_queues(),
    strategies.limits(),
    st.integers(1, 2**31),
    st.floats(0, 1e300),
    st.integers(0, 64),
)
def test_a_request_is_lossless(
    queues: tuple[JobQueue, ...], limits: Limits, number: int, served: float, rank: int
) -> None:
    other = Batch(1, (2**40, 0), (1, 9), labelled=(0, 3), loads=(8, 2**40), started=True)
    more = JobQueue("größe\n", (other,), weight=0.1, served=served, rank=rank)
    request = Request((*queues, more), limits, number, "fair", number)
    line = request.to_json()
    assert line.isascii() and "\n" not in line
    assert Request.from_json(line) == request


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), 0, "request: format is 0; allowed: 1"),
        (("max_places",), 0, "request: max_places is 0; allowed: an integer of at least 1"),
        (("effort",), 1.5, "request: effort is 1.5"),
        (("policy",), None, "request: policy is None"),
        (("limits", "stages"), 0, "request: limits.stages is 0"),
        (("limits",), {}, "request: limits is {}; allowed: an object with exactly the fields cap"),
        (("queues",), {}, "request: queues is {}; allowed: a list"),
        (("queues", 0, "name"), "", r"queues\[0\].name is ''"),
        (("queues", 0, "extra"), 1, r"queues\[0\] is {.*; allowed: an object with exactly"),
        (("queues", 1, "ready_at"), -1, r"queues\[1\].ready_at is -1"),
        (("queues", 1, "rank"), True, r"queues\[1\].rank is True"),
        (("queues", 1, "weight"), "1", r"queues\[1\].weight is '1'; allowed: a number"),
        (("queues", 1, "weight"), float("nan"), "job 'b': weight nan"),
        (("queues", 0, "batches", 1, "step"), 9, r"steps \[1, 9, 3, 4, 5\]"),
        (("queues", 0, "batches", 1, "samples", 2), -1, r"batches\[1\].samples\[2\] is -1"),
        (("queues", 0, "batches", 1, "lengths", 0), 0, r"batches\[1\].lengths\[0\] is 0"),
        (("queues", 0, "batches", 1, "lengths", 0), True, r"batches\[1\].lengths\[0\] is True"),
        (("queues", 0, "batches", 1, "lengths"), [3], "3 samples and 1 lengths"),
        (("queues", 0, "batches", 1, "labelled", 1), 0.5, r"batches\[1\].labelled\[1\] is 0.5"),
        (("queues", 0, "batches", 1, "loads"), [1, 2, 0], r"batches\[1\].loads\[2\] is 0"),
        (("queues", 0, "batches", 0, "started"), 1, r"batches\[0\].started is 1; allowed: true"),
        (("queues", 0, "batches", 0, "ended"), True, "and at most labelled, loads, started beside"),
        (("queues", 0, "evals"), [{"step": 0, "samples": [1], "lengths": [2]}] * 2, "at most one"),
    ],
)
def test_a_wrong_field_of_a_request_is_named(
    path: tuple[str | int, ...], value: object, message: str
) -> None:
    document = json.loads(Request(QUEUES, LIMITS, 9).to_json())
    parent: Any = document
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    with pytest.raises(PlanError, match=message):
        Request.from_json(json.dumps(document))


@pytest.mark.parametrize("line", ["", "{", "[]", "null", '{"format":1}', "[" * 100_000])
def test_no_request(line: str) -> None:
    with pytest.raises(PlanError):
        Request.from_json(line)


def test_an_answer_is_a_plan_or_an_error() -> None:
    plan = next_window(QUEUES, LIMITS, max_places=9)
    assert read_answer(plan.to_json()) == plan
    with pytest.raises(PlanError, match=r'^sample "7" of größe$'):
        read_answer(write_error('sample "7" of größe'))
    for line in ("", "hello", '{"error":', '{"error":7}', '{"error":""}', '{"error":"a","b":1}'):
        with pytest.raises(PlanError):
            read_answer(line)


# The process.


@pytest.mark.multiproc
def test_the_plan_of_another_process_is_the_one_made_here() -> None:
    with Ahead() as ahead:
        assert not ahead.asked and not workers()  # nothing runs before it is needed
        for more in ({}, {"effort": 0}, {"policy": "fair", "max_places": 3}):
            assert ask(ahead, **more) == next_window(QUEUES, LIMITS, **{"max_places": 9, **more})
        assert len(workers()) == 1
    assert not workers()
    ahead.close()  # a second time


@pytest.mark.multiproc
def test_a_plan_error_comes_back_with_its_message() -> None:
    with Ahead() as ahead:
        with pytest.raises(PlanError, match="job 'c', sample 4: 13 tokens"):
            ask(ahead, (queue("c", longest=13),))
        with pytest.raises(PlanError, match="policy is 'quick'"):
            ask(ahead, policy="quick")
        (worker,) = workers()
        assert ask(ahead).places
        assert workers() == [worker]


@pytest.mark.multiproc
def test_what_was_discarded_is_never_answered() -> None:
    """Not even where requests are larger than a pipe holds, and nobody takes the answers."""
    large = tuple(queue(f"job{i}", 400) for i in range(8))
    assert len(Request(large, LIMITS, 9).to_json()) > 2**17
    with Ahead() as ahead:
        for places in range(1, 6):
            ahead.submit(large, LIMITS, max_places=10**6 if places % 2 else places, effort=0)
            ahead.discard()
            assert not ahead.asked
        ahead.discard()  # of nothing
        assert ask(ahead) == next_window(QUEUES, LIMITS, max_places=9)


@pytest.mark.multiproc
def test_a_worker_that_dies_is_started_anew() -> None:
    with Ahead() as ahead:
        expected = ask(ahead)
        for _ in range(3):
            (worker,) = workers()
            os.kill(worker, signal.SIGKILL)
            assert ask(ahead) == expected
            assert workers() != [worker]


@pytest.mark.multiproc
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise SystemExit(3)", "ended with code 3; ended with code 3"),
        ("input(); import os; os.kill(os.getpid(), 9)", "ended by SIGKILL; ended by SIGKILL"),
        ("input(); print(end='half an answer')", "ended with code 0"),
        ("import os, time; os.close(1); time.sleep(60)", "ended by SIGKILL"),
    ],
)
def test_one_that_always_dies_is_an_error(
    code: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorafusion.planner.child.END_S", 0.2)
    with Ahead(command=python(code)) as ahead:
        with pytest.raises(PlanError, match=f"did not answer in 2 tries .*{message}"):
            ask(ahead)
        assert not children(os.getpid())


def test_one_that_cannot_be_started_is_an_error() -> None:
    with Ahead(command=["/nowhere/python"]) as ahead:
        with pytest.raises(PlanError, match=r"was not started: .*/nowhere/python"):
            ask(ahead)


@pytest.mark.multiproc
@pytest.mark.parametrize(
    "code", ["input(); import time; time.sleep(60)", "import time; time.sleep(60)"]
)
def test_one_that_does_not_answer_is_given_up(code: str) -> None:
    large = tuple(queue(f"job{i}", 400) for i in range(8))  # more than the pipe takes unread
    with Ahead(command=python(code), patience_s=0.3) as ahead:
        with pytest.raises(PlanError, match=r"has not answered for 0.3 s, and was ended"):
            ask(ahead, large)
        assert not children(os.getpid())


WRONG = """
import sys
from dataclasses import replace
from lorafusion.planner.request import Request
request = Request.from_json(input())
plan = request.plan()
print({}.to_json())
"""


@pytest.mark.multiproc
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("replace(plan, places=plan.places[:1] + plan.places[:-1])", "must not be run"),
        ("replace(plan, places=plan.places[1:])", "must not be run"),
        ("replace(plan, limits=replace(plan.limits, capacity=99))", "answered with 9 places for"),
        ("replace(request, max_places=10).plan()", "answered with 10 places"),
    ],
)
def test_a_wrong_plan_is_refused(answer: str, message: str) -> None:
    with Ahead(command=python(WRONG.format(answer))) as ahead:
        with pytest.raises(PlanError, match=message):
            ask(ahead)


NOISY = """
import os
from lorafusion.planner import worker
answer = worker.answer
worker.answer = lambda line: os.write(1, b"noise") and print("and ours") or answer(line)
worker.main()
"""


@pytest.mark.multiproc
def test_what_is_printed_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with Ahead(command=python(NOISY)) as ahead:
        assert ask(ahead).places
    assert "noise" in capfd.readouterr().err


@pytest.mark.multiproc
def test_the_worker_itself_answers_until_stdin_ends() -> None:
    """Started by hand, without what Ahead does for it."""
    command = [sys.executable, "-m", "lorafusion.planner.worker"]
    request = Request(QUEUES, LIMITS, 9)
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for _ in range(2):
            process.stdin.write(f"{request.to_json()}\n")
            process.stdin.flush()
            assert read_answer(process.stdout.readline()) == request.plan()
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)
        process.stdin.close()
        assert process.wait(timeout=20) == 0


def test_the_worker_loads_nothing_heavy() -> None:
    code = "import sys, lorafusion.planner.worker; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.check_output(python(code), env=environment, text=True).split()
    heavy = {"torch", "numpy", "ortools", "multiprocessing", "pickle", "pydantic", "asyncio"}
    assert not heavy & set(found)


# A parent that is treated badly. Each script prints the worker's process id.

PARENT = """
import os, signal, sys, time
from tests.planner.test_ahead import *
ahead = Ahead()
ask(ahead)
(worker,) = workers()
os.write(1, b"%d\\n" % worker)
"""


@contextmanager
def parent(code: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process in a session of its own, without a terminal, and its worker."""
    process = subprocess.Popen(
        python(PARENT + code),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.multiproc
@pytest.mark.parametrize(
    "code",
    [
        "time.sleep(60)",
        # A process that was forked holds the pipe open: its end does not come.
        "os.fork() or os.setsid()\ntime.sleep(30)",
        # In the middle of some seconds' work.
        "ahead.submit([queue('a', 3000)], LIMITS, max_places=9, effort=10**7)\ntime.sleep(60)",
    ],
)
def test_the_worker_ends_with_a_parent_that_is_killed(code: str) -> None:
    with parent(code) as (process, worker):
        assert not is_gone(worker)
        time.sleep(0.2)  # until the script is where it says
        siblings = children(process.pid)
        process.kill()
        process.wait()
        assert until(lambda: is_gone(worker))
        for pid in siblings:
            if pid != worker:
                os.kill(pid, signal.SIGKILL)


@pytest.mark.multiproc
@pytest.mark.parametrize("code", ["", "ahead.submit(QUEUES, LIMITS, max_places=9)", "1 / 0"])
def test_a_parent_that_forgets_to_close_ends_and_leaves_nothing(code: str) -> None:
    with parent(code) as (process, worker):
        assert process.wait(timeout=20) == (1 if "/" in code else 0)
        assert until(lambda: is_gone(worker))


@pytest.mark.multiproc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_the_group_are_for_the_parent(number: signal.Signals) -> None:
    """From the worker's first instant on, and while it is idle."""
    code = f"""
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)
os.kill(worker, signal.SIGKILL)
ahead.submit(QUEUES, LIMITS, max_places=9)
seen = set()
for _ in range(40):
    os.killpg(0, {int(number)})
    seen |= set(workers())
    time.sleep(0.01)
ahead.take()
os.killpg(0, {int(number)})
assert ask(ahead).places
seen = seen | set(workers()) - {{worker}}
ahead.close()
assert len(seen - {{worker}}) == 1, "it was started more than once"
print("through")
"""
    with parent(code) as (process, _):
        assert process.stdout is not None
        assert process.stdout.read() == "through\n"
        assert process.wait() == 0


@pytest.mark.multiproc
def test_a_daemon_without_any_open_stream(tmp_path: Path) -> None:
    code = f"""
ahead.close()
os.closerange(0, 3)
with Ahead() as ahead:
    plan = ask(ahead)
open({str(tmp_path / "plan.json")!r}, "w").write(plan.to_json())
"""
    with parent(code) as (process, _):
        assert process.wait(timeout=30) == 0
    plan = Plan.from_json((tmp_path / "plan.json").read_text())
    assert plan == next_window(QUEUES, LIMITS, max_places=9)
