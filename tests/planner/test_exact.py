"""CP-SAT makes a draft better or leaves it; its windows keep the rules and find the best."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lorafusion.errors import PlanError
from lorafusion.planner.balance import balance, draft_loads, pace
from lorafusion.planner.board import Board, Stay
from lorafusion.planner.case import Case
from lorafusion.planner.chain import Chain, make_chains
from lorafusion.planner.draft import Draft, DraftPlace, to_plan
from lorafusion.planner.exact import improve
from lorafusion.planner.plan import Limits
from lorafusion.planner.queue import Batch, JobQueue, advance
from lorafusion.planner.schedule import Scheduler, Tuning
from lorafusion.planner.verify import verify_plan
from lorafusion.planner.window_goals import Pace
from lorafusion.planner.window_model import WindowModel
from tests.planner.strategies import job_queues, limits

pytest.importorskip("ortools")

CASES = Path(__file__).parent / "cases"


def job(name: str, *steps: Sequence[int], **more: Any) -> JobQueue:
    """A job with these loads, step by step."""
    batches = (Batch(step, tuple(range(len(x))), tuple(x)) for step, x in enumerate(steps, 1))
    return JobQueue(name, tuple(batches), **more)


def at(*places: dict[int, tuple[int, ...]]) -> list[DraftPlace]:
    """A draft of train places: job -> positions of its open step."""
    return [DraftPlace("train" if taken else "noop", taken) for taken in places]


def scheduled(
    queues: Sequence[JobQueue], limits: Limits, max_places: int | None = None
) -> tuple[Sequence[Chain], list[DraftPlace]]:
    chains = make_chains(queues, limits)
    scheduler = Scheduler(chains, limits)
    scheduler.run(Tuning(), max_places)
    return chains, balance(scheduler.places, chains, limits)


def cost(draft: Draft, chains: Sequence[Chain], limits: Limits) -> tuple[int, int]:
    return len(draft), pace(draft_loads(draft, chains, limits), limits.distance)


@settings(max_examples=20)
@given(job_queues(), limits(), st.one_of(st.none(), st.integers(1, 20)))
def test_an_improved_draft_is_valid_and_never_worse(
    queues: tuple[JobQueue, ...], limits: Limits, max_places: int | None
) -> None:
    chains, draft = scheduled(queues, limits, max_places)
    better = improve(draft, chains, limits, budget=0.1)
    before, plan = to_plan(draft, chains, limits), to_plan(better, chains, limits)
    verify_plan(plan, queues)
    places, paced = cost(draft, chains, limits)
    assert len(better) <= places and cost(better, chains, limits)[1] <= paced
    assert improve(draft, chains, limits, budget=0.1) == better
    # Evals stay, and what comes in the next window waits no longer.
    for index, place in enumerate(before.places):
        if place.kind == "eval":
            assert plan.places[index] == place
    for old, new in zip(advance(queues, before), advance(queues, plan), strict=True):
        assert set(old.batches) == set(new.batches)
        if new.remaining_steps:
            assert new.ready_at + len(better) <= old.ready_at + len(draft)


@st.composite
def small_drafts(draw: st.DrawFn) -> tuple[tuple[JobQueue, ...], Limits, Draft, range]:
    """A whole plan of one to three jobs, and a window with few samples."""
    limits = Limits(
        capacity=draw(st.integers(8, 14)),
        stages=draw(st.integers(1, 3)),
        segment_load=draw(st.integers(0, 2)),
        place_load=draw(st.integers(0, 3)),
    )
    loads = st.lists(st.integers(1, 6), min_size=1, max_size=3)
    queues: list[JobQueue] = []
    for name in draw(st.sampled_from(("a", "ab", "ab", "abc"))):
        queue = job(name, *draw(st.lists(loads, min_size=1, max_size=3)))
        due = draw(st.sets(st.integers(0, len(queue.batches)), max_size=1))
        evals = {step: Batch(step, (9,), (2,)) for step in due}
        queues.append(replace(queue, evals=evals, ready_at=draw(st.integers(0, 2))))
    _, draft = scheduled(queues, limits)
    first = draw(st.integers(0, len(draft) - 1))
    return tuple(queues), limits, draft, range(first, min(first + 4, len(draft)))


def placements(board: Board, window: range) -> Iterator[Draft]:
    """All ways to put the samples of the window's steps somewhere in it, by brute force."""
    samples = [
        (stay, position)
        for stay, place, positions in board.where()
        if stay.movable and place in window
        for position in positions
    ]
    assume(0 < len(samples) <= 5)
    for places in product(window, repeat=len(samples)):
        stands: dict[int, dict[int, list[int]]] = {
            id(stay): {p: list(taken) for p, taken in stay.at.items() if p not in window}
            for stay in board.movable()
        }
        for (stay, position), place in zip(samples, places, strict=True):
            stands[id(stay)].setdefault(place, []).append(position)
        if _in_order(board, stands):
            yield _drafted(board, stands)


def _in_order(board: Board, stands: dict[int, dict[int, list[int]]]) -> bool:
    for stays in board.stays:
        reach = [stands.get(id(stay), stay.at) for stay in stays]
        if stays and min(reach[0]) < board.first_allowed(stays[0]):
            return False
        for stay, (one, other) in zip(stays, pairwise(reach), strict=False):
            if max(one) + board.gap(stay) > min(other):
                return False
    return True


def _drafted(board: Board, stands: dict[int, dict[int, list[int]]]) -> Draft:
    taken: list[dict[int, tuple[int, ...]]] = [{} for _ in board.loads]
    stays: list[Stay] = [stay for of_job in board.stays for stay in of_job]
    for stay in stays:
        for place, positions in stands.get(id(stay), stay.at).items():
            taken[place][stay.job] = tuple(sorted(positions))
    return [
        DraftPlace(kind if kind == "eval" else "train" if jobs else "noop", jobs)
        for kind, jobs in zip(board.kinds, taken, strict=True)
    ]


def valid(draft: Draft, chains: Sequence[Chain], limits: Limits) -> bool:
    try:
        verify_plan(to_plan(draft, chains, limits), [chain.queue for chain in chains])
    except PlanError:
        return False
    return True


def solved(board: Board, window: range) -> Draft:
    """The draft after the window was solved for the least pace."""
    from ortools.sat.python import cp_model

    model = WindowModel(board, window)
    assert Pace(board).minimise(model)
    model.hint()
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    assert solver.solve(model.model) == cp_model.OPTIMAL
    board.put(*model.moves(solver.value))
    assert solver.objective_value <= pace(board.loads, board.limits.distance)
    return board.draft()


@settings(max_examples=60)
@given(small_drafts())
def test_a_window_is_as_good_as_the_best_of_all_placements(
    drafted: tuple[tuple[JobQueue, ...], Limits, Draft, range],
) -> None:
    queues, limits, draft, window = drafted
    chains = make_chains(queues, limits)
    best = min(
        cost(found, chains, limits)
        for found in placements(Board(draft, chains, limits), window)
        if valid(found, chains, limits)
    )
    found = solved(Board(draft, chains, limits), window)
    assert valid(found, chains, limits)
    assert cost(found, chains, limits) == best


def test_samples_that_fit_into_one_place_less_are_found() -> None:
    """6 + 4 and 5 + 5 fill two places of 10."""
    queues = [job("a", [6]), job("b", [4]), job("c", [5, 5])]
    limits = Limits(10)
    chains = make_chains(queues, limits)
    draft = at({0: (0,)}, {1: (0,), 2: (0,)}, {2: (1,)})
    assert cost(improve(draft, chains, limits, budget=0.5), chains, limits) == (2, 20)


def test_a_place_is_saved_only_where_the_order_lets_it() -> None:
    """At two stages the second step needs place 2; the place that "b" wastes is the last one."""
    queues = [job("a", [6], [6]), job("b", [4, 4])]
    limits = Limits(10, 2)
    chains = make_chains(queues, limits)
    draft = at({1: (0,)}, {0: (0,)}, {1: (1,)}, {0: (0,)})
    verify_plan(to_plan(draft, chains, limits), queues)
    better = improve(draft, chains, limits, budget=0.5)
    verify_plan(to_plan(better, chains, limits), queues)
    assert len(better) == 3


def test_a_place_is_not_saved_where_that_is_slower() -> None:
    """Two places of 10 take five runs of 10, four places of 5 seven runs of 5."""
    queue = job("a", [5, 5, 5, 5])
    limits = Limits(10, 4)
    chains = make_chains([queue], limits)
    draft = at(*({0: (position,)} for position in range(4)))
    assert cost(improve(draft, chains, limits, budget=0.3), chains, limits) == (4, 35)


def test_an_eval_at_the_end_keeps_the_places() -> None:
    queue = JobQueue("a", (Batch(1, (0,), (4,)),), {1: Batch(1, (9,), (4,))})
    limits = Limits(10, 2)
    chains = make_chains([queue], limits)
    draft = [
        DraftPlace("train", {0: (0,)}),
        *[DraftPlace("noop", {})] * 3,
        DraftPlace("eval", {0: (0,)}),
    ]
    assert improve(draft, chains, limits, budget=0.2) == draft


def test_places_that_hold_nothing_at_the_end_go() -> None:
    queue = job("a", [4])
    limits = Limits(10, 2)
    chains = make_chains([queue], limits)
    draft = at({0: (0,)}, {}, {})
    assert improve(draft, chains, limits, budget=0.2) == draft[:1]


def test_steps_move_together_where_none_can_alone() -> None:
    """Two jobs that balancing leaves at 0.37 idle; one job has to wait for the other to move."""
    case = Case.from_json((CASES / "two_jobs.json").read_text())
    queues, limits = case.queues(), Limits(case.capacity_tokens, case.stages)
    chains, draft = scheduled(queues, limits)
    draft = balance(draft, chains, limits, sweeps=24)
    better = improve(draft, chains, limits, budget=0.6)
    verify_plan(to_plan(better, chains, limits), queues)
    before, after = cost(draft, chains, limits), cost(better, chains, limits)
    assert after[0] <= before[0]
    assert after[1] < 0.985 * before[1]


def test_no_budget_changes_nothing() -> None:
    queues = [job("a", [6]), job("b", [4]), job("c", [5, 5])]
    limits = Limits(10)
    chains = make_chains(queues, limits)
    draft = at({0: (0,)}, {1: (0,), 2: (0,)}, {2: (1,)})
    assert improve(draft, chains, limits, budget=0) == draft
    assert improve([], make_chains([], limits), limits, budget=0.1) == []


def test_without_or_tools_the_error_says_how_to_mend_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ortools.sat.python", None)
    queue = job("a", [4])
    with pytest.raises(PlanError, match=r"OR-tools.*pip install ortools"):
        improve(at({0: (0,)}), make_chains([queue], Limits(10)), Limits(10), budget=1)


def test_or_tools_are_not_imported_before_they_are_needed() -> None:
    code = "import sys, lorafusion.planner.exact; assert 'ortools' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
