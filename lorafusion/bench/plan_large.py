"""A simulated Llama-3.1-70B on 4, 8 and 16 H100-like stages: bubbles of ours and of others' ways.

Jobs of real length mixes, about 50·S microbatches, whole layers on each stage, activations
recomputed (without, 70B on four stages has memory for 1,100 tokens a microbatch)::

    python -m lorafusion.bench.plan_studies large --output docs/planner --write docs/planner.md
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lorafusion.bench.pages import measured_on, table
from lorafusion.bench.plan import BASELINES
from lorafusion.bench.plan_mixes import MIXES, Mix, make_queues
from lorafusion.bench.plan_simulated import Played, Run, Stages, alone, make_run, play
from lorafusion.planner.plan import Plan
from lorafusion.planner.search import plan_run
from lorafusion.planner.verify import verify_plan

__all__ = ["MOST", "STAGES", "WAYS", "bounds", "markdown", "ours", "study", "together"]

BASE = "Llama-3.1-70B"
STAGES = (4, 8, 16)
PLACES = 50
"""Of a run, for each stage."""

MOST = {"bubble": 0.05, "bubble_without_ramp": 0.03}
"""What ours is to reach."""

WAYS = {
    "ours": "ours",
    "lorafusion_greedy": "LoRAFusion's greedy",
    "mlora": "mLoRA's order",
    "one_after_another": "one job after another, a flush a batch",
    "each_alone": "the same, each with its own best capacity",
}
"""Way -> how a table calls it."""


def study() -> dict[str, Any]:
    """Every mix on every number of stages."""
    runs = [together(mix, stages) for mix in MIXES for stages in STAGES]
    return {"base": BASE, "places_a_stage": PLACES, "runs": runs}


def ours(mix: Mix, stages: int) -> tuple[Run, Plan]:
    """One mix on so many stages, and our plan of it."""
    queues = make_queues(mix, stages=stages, places=PLACES * stages)
    run = make_run(queues, Stages(BASE, stages, mix.capacity_tokens))
    return run, plan_run(run.queues, run.measure.limits())


def bounds(run: Run, plan: Plan) -> tuple[float, float]:
    """Bubble because the slowest stage has more to do than the mean one, and because of the ramp.

    No plan for this cut is below the former nor, with as many places, much below the sum.
    """
    seconds = run.stage_seconds()
    ramp = len(seconds) - 1
    return 1 - sum(seconds) / len(seconds) / max(seconds), ramp / (len(plan.places) + ramp)


def together(mix: Mix, stages: int) -> dict[str, Any]:
    """One mix on so many stages: the run, what bounds it, and what each way reaches."""
    run, plan = ours(mix, stages)
    verify_plan(plan, run.queues)
    ways = {"ours": play(run, plan)}
    for name, make in BASELINES.items():
        made = make(run.queues, run.measure.limits())
        ways[name] = play(run, made.plan, made.flush_after)
    on = Stages(BASE, stages, mix.capacity_tokens)
    apart = [alone(queue, on) for queue in run.queues]
    ways["each_alone"] = Played.in_turn([played for played, _ in apart])
    by_stages, by_ramp = bounds(run, plan)
    return {
        "mix": mix.name,
        "stages": stages,
        "capacity_tokens": mix.capacity_tokens,
        "alone_tokens": [tokens for _, tokens in apart],
        "layers": list(run.layers),
        "jobs": [queue.name for queue in run.queues],
        "batches": [len(queue.batches[0].samples) for queue in run.queues],
        "steps": [len(queue.batches) for queue in run.queues],
        "labelled_share": run.typical.labelled / run.typical.tokens,
        "by_stages": by_stages,
        "by_ramp": by_ramp,
        "ways": {name: asdict(played) for name, played in ways.items()},
    }


def markdown(result: Mapping[str, Any]) -> str:
    """The table of a study: a row a run, a column a way."""
    head = ["jobs", "S", "samples a step", "cut and ramp alone", *WAYS.values()]
    lines = [
        [
            run["mix"],
            str(run["stages"]),
            ", ".join(map(str, run["batches"])),
            _shares(run["by_stages"] + run["by_ramp"], run["by_stages"]),
            *(_cell(run["ways"][name]) for name in WAYS),
        ]
        for run in result["runs"]
    ]
    capacities = {run["mix"]: run["capacity_tokens"] for run in result["runs"]}
    sizes = ", ".join(f"{tokens:,} tokens ({mix})" for mix, tokens in capacities.items())
    about = (
        f"{result['base']}, simulated; about {result['places_a_stage']}·S microbatches of {sizes}"
    )
    means = "Bubble with the ramp / without it, and tokens per second."
    return "\n".join([measured_on(result, about), means, "", *table(head, lines, left=3)])


def _cell(way: Mapping[str, Any]) -> str:
    shares = _shares(way["bubble"], way["bubble_without_ramp"])
    return f"{shares}, {way['tokens_per_s']:,.0f}"


def _shares(bubble: float, without_ramp: float) -> str:
    return f"{bubble:.1%} / {without_ramp:.1%}"
