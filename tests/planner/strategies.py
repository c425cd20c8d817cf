"""Random queues for the planner's tests."""

from __future__ import annotations

from hypothesis import strategies as st

from lorafusion.planner.plan import Limits
from lorafusion.planner.queue import Batch, JobQueue

CAPACITY = 24


def batch(draw: st.DrawFn, step: int, longest: int = CAPACITY) -> Batch:
    lengths = draw(st.lists(st.integers(1, longest), min_size=1, max_size=6))
    order = draw(st.permutations(range(len(lengths))))
    return Batch(step, tuple(order), tuple(lengths))


@st.composite
def job_queues(draw: st.DrawFn, longest: int = CAPACITY) -> tuple[JobQueue, ...]:
    """Up to four jobs with evals, any of them perhaps begun and with more behind the queue."""
    queues: list[JobQueue] = []
    for job in range(draw(st.integers(1, 4))):
        first = draw(st.integers(1, 3))
        batches = tuple(batch(draw, first + i, longest) for i in range(draw(st.integers(0, 4))))
        last = first - 1 + len(batches)
        due = draw(st.sets(st.integers(first - 1, last)))
        tokens = sum(sum(item.lengths) for item in batches)
        queues.append(
            JobQueue(
                f"job{job}",
                batches,
                {step: batch(draw, step, longest) for step in due},
                tokens + draw(st.integers(0, 50)),
                len(batches) + draw(st.integers(0, 3)),
                ready_at=draw(st.integers(0, 5)),
                weight=draw(st.sampled_from((0.5, 1.0, 3.0))),
            )
        )
    return tuple(queues)


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    segment = draw(st.integers(0, 3))
    return Limits(
        draw(st.integers(CAPACITY + segment, 3 * CAPACITY)),
        draw(st.integers(1, 4)),
        draw(st.integers(1, 3)),
        segment,
    )
