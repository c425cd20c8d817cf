"""How evenly microbatches take time when they are balanced by predicted time, or by tokens.

Reports of up to 16,384 tokens beside short notes, so that attention is a good part of some samples'
time and next to none of others'. Simulated::

    python -m lorafusion.bench.plan_studies balance --output docs/planner --write docs/planner.md
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lorafusion.bench.pages import measured_on, table
from lorafusion.bench.plan_mixes import LONG, make_queues
from lorafusion.bench.plan_simulated import Run, Stages, make_run, play
from lorafusion.planner.plan import Limits
from lorafusion.planner.search import plan_run
from lorafusion.planner.spread import time_spread
from lorafusion.planner.verify import verify_plan

__all__ = ["MOST", "RUNS", "compare", "markdown", "study"]

RUNS = (("Llama-3.1-8B", 4), ("Llama-3.1-8B", 8), ("Llama-3.1-70B", 8), ("Llama-3.1-70B", 16))
"""Base and stages. 70B on four stages has no memory for microbatches of 24,576 tokens."""

PLACES = 50
"""Of a run, for each stage."""

MOST = 0.5
"""The spread that balancing by time may leave, of what balancing by tokens leaves."""


def study() -> dict[str, Any]:
    """Each base on each number of stages."""
    return {
        "capacity_tokens": LONG.capacity_tokens,
        "longest": LONG.longest,
        "jobs": len(LONG.jobs),
        "places_a_stage": PLACES,
        "runs": [compare(base, stages, PLACES * stages) for base, stages in RUNS],
    }


def compare(base: str, stages: int, places: int) -> dict[str, Any]:
    """Plan one run by time and by tokens, and look at the predicted times of both plans.

    Spread is the standard deviation over the mean of the microbatches' times on the stage where
    each takes longest, the last one left out.
    """
    queues = make_queues(LONG, stages=stages, places=places)
    run = make_run(queues, Stages(base, stages, LONG.capacity_tokens))
    ways = {"time": run.measure.limits(), "tokens": Limits(LONG.capacity_tokens, stages)}
    found: dict[str, Any] = {}
    for way, limits in ways.items():
        planned = run.queues if way == "time" else queues
        plan = plan_run(planned, limits)
        verify_plan(plan, planned)
        spread = time_spread(plan, run.cost, run.ranks)
        longest = max(max(batch.lengths) for queue in queues for batch in queue.batches)
        found[way] = {"spread": spread, **asdict(play(run, plan)), "longest": longest}
    return {
        "base": base,
        "stages": stages,
        "attention_share": _attention_share(run),
        "ratio": found["time"]["spread"] / found["tokens"]["spread"],
        "ways": found,
    }


def markdown(result: Mapping[str, Any]) -> str:
    """The table of a study."""
    head = ["base", "balanced by", "S", "attention", "places", "spread", "of tokens'", "bubble"]
    lines = [
        [
            run["base"],
            f"predicted {way}" if way == "time" else way,
            str(run["stages"]),
            f"{run['attention_share']:.0%}",
            f"{found['places']:,}",
            f"{found['spread']:.3f}",
            f"{run['ratio']:.2f}" if way == "time" else "",
            f"{found['bubble']:.1%}",
        ]
        for run in result["runs"]
        for way, found in run["ways"].items()
    ]
    about = (
        f"simulated; {result['jobs']} jobs, samples of up to {result['longest']:,} tokens, "
        "microbatches of "
        f"{result['capacity_tokens']:,}"
    )
    return "\n".join([measured_on(result, about), "", *table(head, lines, left=2)])


def _attention_share(run: Run) -> float:
    """Of the time of all microbatches on the slowest stage, what attention's products take."""
    seconds = run.cost.stages[run.cost.slowest(run.typical)].seconds
    return seconds.square * run.typical.squares / seconds(run.typical)
