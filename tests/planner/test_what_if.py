"""Which stages and replicas would be fastest."""

from __future__ import annotations

import pytest

from lorafusion.errors import PlanError
from lorafusion.planner.devices import find_device
from lorafusion.planner.machines import Machines
from lorafusion.planner.queue import Batch, JobQueue
from lorafusion.planner.shape import ModelShape
from lorafusion.planner.what_if import Candidate, Layout, best_of, search_layouts
from tests.planner.base_configs import CONFIGS

LLAMA_8B, LLAMA_70B = (
    ModelShape.from_config(CONFIGS[name]) for name in ("Llama-3.1-8B", "Llama-3.1-70B")
)
QUEUES = [
    JobQueue(
        name,
        tuple(
            Batch(step, tuple(range(8)), (700, 300, 900, 500) * 2, (60,) * 8)
            for step in range(1, 9)
        ),
        rank=16,
    )
    for name in "abcd"
]


def test_every_cut_of_the_machines_is_tried() -> None:
    found = list(search_layouts(QUEUES, LLAMA_8B, Machines(find_device("h100"), 2, 2)))
    assert {(c.layout.stages, c.layout.replicas) for c in found} == {(1, 4), (2, 2), (4, 1)}
    best = best_of(found)
    assert best.tokens_per_s == max(c.tokens_per_s for c in found)
    assert {job for job, _ in best.job_step_s} == set("abcd")
    for one in found:
        assert one.fullest < 80e9
        reduced = max(seconds for _, seconds in one.reduction_s)
        assert (reduced > 0) == (one.layout.replicas > 1)


def test_what_does_not_fit_says_why() -> None:
    found = list(search_layouts(QUEUES, LLAMA_70B, Machines(find_device("h100"), 1, 2)))
    assert all("of the 72.0 GB" in one.refused for one in found)
    assert len(found) == 4
    with pytest.raises(PlanError, match="no number of stages can be used; with 2: stage 0"):
        best_of(found)


def test_the_fastest_is_the_best() -> None:
    slow, fast = (Candidate(Layout(n, 1, False), tokens_per_s=n) for n in (1, 2))
    assert best_of([slow, fast, Candidate(Layout(4, 1, False), "too large")]) is fast
