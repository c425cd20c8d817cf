"""Windows join to one valid plan whoever comes and goes."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafusion.errors import PlanError
from lorafusion.planner import windows
from lorafusion.planner.plan import Limits, Plan
from lorafusion.planner.queue import Batch, JobQueue, advance
from lorafusion.planner.schedule import Policy, plan_window
from lorafusion.planner.search import plan_run
from lorafusion.planner.verify import find_violations
from lorafusion.planner.windows import MOST_WAYS, join, next_window
from tests.planner import strategies
from tests.planner.service import Script, Service, lognormal, steps

LONGEST = 20


@st.composite
def scripts(draw: st.DrawFn) -> list[Script]:
    found: list[Script] = []
    for whole in draw(strategies.job_queues(LONGEST)):
        batches = tuple(
            replace(batch, loads=tuple(draw(st.integers(1, LONGEST)) for _ in batch.loads))
            for batch in whole.batches
        )
        whole = JobQueue(whole.name, batches, whole.evals, weight=whole.weight)
        pauses = draw(st.none() | st.integers(1, 6))
        found.append(
            Script(
                replace(whole, ready_at=draw(st.integers(0, 4))),
                arrives=draw(st.integers(0, 5)),
                pauses=pauses,
                resumes=(pauses or 0) + draw(st.integers(1, 4)),
                cancelled=draw(st.none() | st.none() | st.integers(0, 12)),
            )
        )
    return found


windows_of_any_size = st.lists(
    st.tuples(st.integers(1, 9), st.none() | st.integers(0, 5)), min_size=1, max_size=9
).filter(lambda sizes: any(keep != 0 for _, keep in sizes))


@settings(max_examples=150)
@given(
    scripts(),
    strategies.limits(),
    windows_of_any_size,
    st.sampled_from(("makespan", "fair")),
    st.integers(1, 5),
    st.sampled_from((0, 300)),
)
def test_jobs_come_and_go_and_the_windows_join_to_one_valid_plan(
    scripts: list[Script],
    limits: Limits,
    sizes: list[tuple[int, int | None]],
    policy: Policy,
    depth: int,
    effort: int,
) -> None:
    service = Service(limits, depth, policy, effort, scripts)
    turns = deque(sizes)
    last = max(max(s.arrives, s.resumes) for s in scripts)
    turn = 0
    while turn <= last or not service.through:
        service.edge(turn)
        service.window(*turns[0])
        turns.rotate(-1)
        turn += 1
        assert turn < 2000
    came = [
        replace(s.whole, ready_at=s.whole.ready_at + service.came[s.whole.name]) for s in scripts
    ]
    joined = Plan(limits, tuple(service.places))
    assert find_violations(joined, came) == ()
    # Nothing is lost: whoever was not cancelled is through. Twice is a violation.
    left = {queue.name: queue for queue in advance(came, joined)}
    assert not service.aside
    assert all(left[s.whole.name].empty for s in scripts if s.cancelled is None)


def served(queues: Sequence[JobQueue]) -> dict[str, float]:
    return {queue.name: queue.served for queue in queues}


def test_who_joins_starts_at_the_least_served() -> None:
    def queue(name: str, served: float, **more: float) -> JobQueue:
        return JobQueue(name, steps(3, 1, 5), served=served, **more)

    queues = (queue("a", 70.0), queue("b", 50.0, weight=2.0))
    assert served(join(queues, queue("new", 0.0))) == {"a": 70.0, "b": 50.0, "new": 50.0}
    # One that comes back has had its share already.
    assert join(queues, queue("back", 60.0))[-1].served == 60.0
    assert join((), queue("first", 3.0)) == (queue("first", 3.0),)
    # A job that is through says nothing.
    ended = replace(queue("c", 1.0), batches=(), remaining_load=0, remaining_steps=0)
    assert join((*queues, ended), queue("new", 0.0))[-1].served == 50.0
    with pytest.raises(PlanError, match="job 'b' is among the queues"):
        join(queues, queue("b", 0.0))


def rest(queue: JobQueue, steps: int) -> JobQueue:
    """``queue`` with as many more steps to come."""
    return replace(queue, remaining_steps=queue.remaining_steps + steps)


def test_the_rest_is_searched_where_all_of_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    queues = [JobQueue(name, steps(6, 4, lognormal(i, 30, 60))) for i, name in enumerate("abc")]
    limits = Limits(64, 3)
    samples = 3 * 6 * 4
    whole = plan_run(queues, limits, effort=MOST_WAYS * samples)
    assert next_window(queues, limits, max_places=10**6) == whole
    window = next_window(queues, limits, max_places=7)
    assert window == replace(whole, places=whole.places[:7])

    efforts: list[int] = []

    def spy(queues: Sequence[JobQueue], limits: Limits, *, effort: int) -> Plan:
        efforts.append(effort)
        return plan_run(queues, limits, effort=effort)

    monkeypatch.setattr(windows, "plan_run", spy)
    next_window(queues, limits, max_places=7, effort=10 * samples)
    assert efforts == [10 * samples]
    next_window(queues, limits, max_places=7, effort=10 * samples - 1)
    next_window(queues, limits, max_places=7, policy="fair")
    next_window([rest(queues[0], 1), *queues[1:]], limits, max_places=7)
    assert len(efforts) == 1


def test_a_window_looks_behind_its_edge() -> None:
    """Windows of a long run are together no longer than one pass over all of it."""
    whole = [
        JobQueue(f"job{i}", steps(80, size, lognormal(i, 500, 4096)))
        for i, size in enumerate((1, 4, 8, 16))
    ]
    limits = Limits(4096, 4)
    one_pass = plan_window(whole, limits, max_places=10**6)
    service = Service(limits, 64, "makespan", scripts=[Script(queue) for queue in whole])
    turn = 0
    while not turn or not service.through:
        service.edge(turn)
        service.window(64)
        turn += 1
    assert turn > 4
    assert len(service.places) <= 1.01 * len(one_pass.places)


def test_the_same_arguments_give_the_same_plan() -> None:
    queues = [JobQueue(f"job{i}", steps(9, 5, lognormal(i, 30, 60))) for i in range(4)]
    for effort in (0, 30_000):
        plans = [next_window(queues, Limits(64, 2), max_places=20, effort=effort) for _ in "ab"]
        assert plans[0] == plans[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_places": 0}, "max_places is 0; it must be an integer of at least 1"),
        ({"effort": -1}, "effort is -1; it must be an integer of at least 0"),
        ({"policy": "fastest"}, 'policy is \'fastest\'; allowed: "makespan" or "fair"'),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    arguments = {"max_places": 1, **changes}
    with pytest.raises(PlanError, match=message):
        next_window([JobQueue("a", steps(1, 1, 5))], Limits(8), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("effort", [0, 30_000])
def test_a_sample_that_fits_nowhere_is_named_wherever_it_stands(effort: int) -> None:
    queue = JobQueue("a", (*steps(40, 1, 5), Batch(41, (7,), (9,))))
    with pytest.raises(PlanError, match="job 'a', sample 7: 9 tokens"):
        next_window([queue], Limits(8), max_places=2, effort=effort)


def test_nothing_to_plan() -> None:
    assert next_window([], Limits(8), max_places=4).places == ()
    assert next_window([JobQueue("a", ())], Limits(8), max_places=4, policy="fair").places == ()
