"""No bound is above the best plan, found here by trying every plan of tiny runs."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafusion.errors import PlanError
from lorafusion.planner.bounds import Bound, lower_bound_places, tight_bound
from lorafusion.planner.case import Case
from lorafusion.planner.plan import Limits
from lorafusion.planner.queue import Batch, JobQueue

CASES = sorted((Path(__file__).parent / "cases").glob("*.json"))
CAPACITY = 6


class Progress(NamedTuple):
    """Of one job: the entry that it is in, what is left of it, places until it may stand."""

    entry: int
    left: tuple[int, ...]
    wait: int


def entries_of(queue: JobQueue) -> list[tuple[str, tuple[int, ...]]]:
    steps = {batch.step: batch for batch in queue.batches}
    entries: list[tuple[str, tuple[int, ...]]] = []
    for step in sorted({*steps, *queue.evals}):
        if step in steps:
            entries.append(("train", tuple(sorted(steps[step].loads))))
        if step in queue.evals:
            entries.append(("eval", tuple(sorted(queue.evals[step].loads))))
    return entries


def fewest_places(queues: list[JobQueue], limits: Limits) -> int:
    """Breadth first over every content of every place."""
    chains = [entries_of(queue) for queue in queues]
    begin = tuple(
        Progress(0, chain[0][1] if chain else (), queue.ready_at)
        for chain, queue in zip(chains, queues, strict=True)
    )
    states, places = {begin}, 0
    while not any(all(not job.left for job in state) for state in states):
        places += 1
        states = {after for state in states for after in next_states(state, chains, limits)}
    return places


def next_states(
    state: tuple[Progress, ...], chains: list[list[tuple[str, tuple[int, ...]]]], limits: Limits
) -> set[tuple[Progress, ...]]:
    after: set[tuple[Progress, ...]] = set()
    for kind in ("train", "eval"):
        choices: list[list[tuple[int, Progress]]] = []
        for job, chain in zip(state, chains, strict=True):
            idle = job._replace(wait=max(0, job.wait - 1))
            options = [(0, idle)]
            if job.left and not job.wait and chain[job.entry][0] == kind:
                options += takes(job, chain, limits)
            choices.append(options)
        for choice in product(*choices):
            if sum(load for load, _ in choice) <= limits.capacity:
                after.add(tuple(progress for _, progress in choice))
    return after


def takes(
    job: Progress, chain: list[tuple[str, tuple[int, ...]]], limits: Limits
) -> list[tuple[int, Progress]]:
    options: dict[Progress, int] = {}
    for mask in range(1, 1 << len(job.left)):
        taken = sum(load for i, load in enumerate(job.left) if mask >> i & 1)
        left = tuple(load for i, load in enumerate(job.left) if not mask >> i & 1)
        wait, entry = 0, job.entry
        if not left and entry + 1 < len(chain):
            wait = limits.distance - 1 if chain[entry][0] == "train" else 0
            entry, left = entry + 1, chain[entry + 1][1]
        options[Progress(entry, left, wait)] = taken + limits.segment_load
    return [(load, progress) for progress, load in options.items()]


def queue_of(name: str, steps: list[list[int]], *, evals: tuple[int, ...] = (), **more: int):
    batches = tuple(
        Batch(step, tuple(range(len(loads))), tuple(loads)) for step, loads in enumerate(steps, 1)
    )
    held_out = {step: Batch(step, (0,), (4,)) for step in evals}
    return JobQueue(name, batches, held_out, **more)


steps_of_a_job = st.lists(
    st.lists(st.integers(1, CAPACITY - 1), min_size=1, max_size=3), min_size=1, max_size=2
)


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[JobQueue], Limits]:
    queues: list[JobQueue] = []
    for name in "abc"[: draw(st.integers(1, 3))]:
        steps = draw(steps_of_a_job)
        evals = tuple(draw(st.sets(st.integers(0, len(steps)), max_size=1)))
        queues.append(queue_of(name, steps, evals=evals, ready_at=draw(st.integers(0, 2))))
    segment_load = draw(st.integers(0, 1))
    stages, replicas = draw(st.sampled_from([(1, 1), (2, 1), (3, 1), (2, 2)]))
    return queues, Limits(CAPACITY, stages, replicas, segment_load)


@settings(max_examples=40)
@given(runs())
def test_never_above_the_best_plan(run: tuple[list[JobQueue], Limits]) -> None:
    best = fewest_places(*run)
    bound = tight_bound(*run)
    assert lower_bound_places(*run) <= bound.simple <= bound.intervals <= bound.places <= best
    assert bound.complete


def test_a_chain_counts_bins_gaps_evals_and_when_it_may_begin() -> None:
    queue = queue_of("a", [[5, 4], [2]], evals=(0, 1), ready_at=2)
    # ready 2, eval, 2 bins, gap of 3 places, eval, 1 bin
    assert lower_bound_places([queue], Limits(CAPACITY, 2, 2)) == 2 + 1 + 2 + 3 + 1 + 1
    assert fewest_places([queue], Limits(CAPACITY, 2, 2)) == 10
    # 1 bin, gap of 3 places, eval
    last = queue_of("a", [[2]], evals=(1,))
    assert lower_bound_places([last], Limits(CAPACITY, 2, 2)) == 1 + 3 + 1


def test_all_load_from_the_place_where_it_may_begin() -> None:
    queues = [queue_of(name, [[1] * 3] * 3, ready_at=5) for name in "abcd"]
    assert lower_bound_places(queues, Limits(CAPACITY)) == 5 + 36 // 6
    assert lower_bound_places(queues, Limits(CAPACITY, segment_load=1)) == 5 + (36 + 12) // 6
    late = queue_of("z", [[6]] * 3)
    assert lower_bound_places([*queues, late], Limits(CAPACITY)) == 5 + 36 // 6
    queues = [queue_of(name, [[2]], evals=(1,), ready_at=5) for name in "abcd"]
    assert lower_bound_places(queues, Limits(CAPACITY)) == 5 + 2 + 3  # evals of 4 each


def test_bins_of_all_samples_together() -> None:
    queues = [queue_of(name, [[4]]) for name in "abcdef"]
    assert lower_bound_places(queues, Limits(CAPACITY)) == 6  # their sum is 4 places
    queues = [queue_of(name, [[3]]) for name in "abcdef"]
    assert lower_bound_places(queues, Limits(CAPACITY)) == 3
    assert lower_bound_places(queues, Limits(CAPACITY, segment_load=1)) == 6  # no two fit
    queues = [queue_of(name, [[1]], evals=(1,)) for name in "abc"]
    assert lower_bound_places(queues, Limits(CAPACITY)) == 1 + 3  # evals of 4 each


class Tight(NamedTuple):
    """A run of two or three jobs, its steps by job, and what is proven of it."""

    jobs: list[list[list[int]]]
    ready: list[int]
    stages: int
    simple: int
    intervals: int
    places: int

    def run(self) -> tuple[list[JobQueue], Limits]:
        queues = [
            queue_of(name, steps, ready_at=ready)
            for name, steps, ready in zip("abc", self.jobs, self.ready, strict=False)
        ]
        return queues, Limits(CAPACITY, self.stages)


TIGHT = {
    "equal chains cannot begin together": Tight([[[6]] * 3, [[6]] * 3], [0, 0], 3, 7, 8, 8),
    "nor end together": Tight([[[2, 5], [3]], [[6], [3]]], [0, 0], 2, 4, 5, 5),
    "no place holds all of 5, 5, 2": Tight([[[3, 3]], [[5, 5, 2]]], [2, 1], 3, 4, 5, 5),
    "two places hold no 6, 3, 4": Tight([[[2, 4], [5]], [[6, 3, 4]]], [0, 2], 4, 5, 6, 6),
    "gaps, two jobs": Tight(
        [[[6], [4, 5]], [[5], [4, 5], [5, 6]]], [2, 0], stages=2, simple=8, intervals=8, places=9
    ),
    "bins of a step": Tight(
        [[[4, 5, 4], [5]], [[5], [4, 4], [4]]], [2, 1], stages=3, simple=9, intervals=9, places=10
    ),
    "gaps, longer": Tight(
        [[[6], [3, 5], [3, 6]], [[6], [3, 3], [6]]],
        [0, 0],
        stages=4,
        simple=11,
        intervals=11,
        places=12,
    ),
    "load flows forward alone": Tight(
        [[[6, 5, 3], [5], [3]], [[5], [3]], [[4], [4, 5], [5, 4]]],
        [0, 0, 2],
        stages=3,
        simple=11,
        intervals=11,
        places=12,
    ),
    "a gap that is just enough": Tight(
        [[[3, 4], [6, 6]], [[5], [5], [4]]], [0, 0], stages=4, simple=9, intervals=9, places=9
    ),
    "bins that are just enough": Tight(
        [[[5, 5, 5], [3, 6, 6], [3]], [[3], [3], [4]]],
        [0, 1],
        stages=2,
        simple=9,
        intervals=9,
        places=9,
    ),
}


@pytest.mark.parametrize("name", TIGHT)
def test_what_is_proven_is_what_the_best_plan_takes(name: str) -> None:
    expected = TIGHT[name]
    bound = tight_bound(*expected.run())
    assert bound == Bound(expected.places, expected.simple, expected.intervals, complete=True)
    assert fewest_places(*expected.run()) == expected.places


def test_the_limits_of_the_search() -> None:
    run = TIGHT["gaps, two jobs"].run()
    assert tight_bound(*run, effort=0) == Bound(8, 8, 8, complete=False)
    assert tight_bound(*run, effort=1e-6) == Bound(8, 8, 8, complete=False)
    assert tight_bound(*run, known=9) == Bound(9, 8, 8, complete=True)
    # Were there a plan of eight places, nothing would be tried.
    assert tight_bound(*run, known=8) == Bound(8, 8, 8, complete=True)


def test_nothing_to_plan() -> None:
    assert lower_bound_places([], Limits(CAPACITY)) == 0
    assert tight_bound([queue_of("a", [])], Limits(CAPACITY)).places == 0


def test_intervals_of_long_chains_are_looked_at_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    run = TIGHT["equal chains cannot begin together"].run()
    found = {}
    for intervals in (1, 2, 3, 100):
        monkeypatch.setattr("lorafusion.planner.bounds.INTERVALS", intervals)
        found[intervals] = tight_bound(*run, effort=0).intervals
    assert found[1] == 7
    assert all(7 <= places <= 8 for places in found.values())
    assert found[100] == 8


def test_a_sample_that_fits_no_place_is_named() -> None:
    queues = [queue_of("a", [[1]]), queue_of("b", [[1], [2, 7]])]
    for bound in (lower_bound_places, tight_bound):
        with pytest.raises(PlanError, match="job 'b', step 2: the sample at position 1"):
            bound(queues, Limits(CAPACITY))
    with pytest.raises(PlanError, match="job 'a', eval after step 1: the sample at position 0"):
        lower_bound_places([queue_of("a", [[1]], evals=(1,))], Limits(3))


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_a_case_holds_its_bound(file: Path) -> None:
    case, notes = Case.read(file), json.loads(file.read_text(encoding="utf-8"))
    bound = lower_bound_places(case.queues(), case.limits())
    if "lorafusion_reference" in notes:  # its bound knows no exact bins
        assert notes["lower_bound_places"] <= bound <= notes["lower_bound_places"] + 1
    else:
        assert notes["lower_bound_places"] == bound
        assert bound <= notes["tight_bound_places"] <= 1.05 * bound


def test_a_small_case_is_settled() -> None:
    case = Case.read(next(file for file in CASES if file.stem == "two_jobs"))
    assert tight_bound(case.queues(), case.limits()) == Bound(41, 41, 41, complete=True)
