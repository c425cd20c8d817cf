"""A run in windows: what comes next, while jobs arrive, end and leave.

One turn, at a window's edge or where training has cut one short::

    plan = next_window(queues, limits, max_places=64)
    queues = advance(queues, plan)  # and queues of jobs that end are dropped, others extended
    queues = join(queues, newcomer)

What stays of a window is in the queues alone: the rest of a step that was cut in two, the place
from which a job may go on, and what it was served. So a window may be cut at any place, and queues
may be dropped or put aside and joined again at any edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

from lorafusion.errors import PlanError
from lorafusion.planner.balance import balance
from lorafusion.planner.chain import check_queues, make_chains
from lorafusion.planner.draft import to_plan
from lorafusion.planner.plan import Limits, Plan
from lorafusion.planner.queue import JobQueue
from lorafusion.planner.schedule import Policy, Scheduler, Tuning
from lorafusion.planner.search import EFFORT, plan_run

__all__ = ["join", "next_window"]

HORIZON = 2
"""Windows that are scheduled, of which the first is kept: what is behind its edge has a say."""

FEWEST_WAYS = 10
MOST_WAYS = 30
"""Times that a search places each sample. Over 8 cases of 390 samples at four stages one pass took
428 places, ten 417, thirty 415 and a hundred 411, at 0.1 ms a sample for ten."""


def next_window(
    queues: Sequence[JobQueue],
    limits: Limits,
    *,
    max_places: int,
    policy: Policy = "makespan",
    effort: int = EFFORT,
) -> Plan:
    """Plan the next ``max_places`` places, or fewer where the queues are used up before.

    Where the queues hold all that is left of their jobs, and little enough for the effort, the
    whole rest is planned and searched for the earliest end; else it is a list schedule of about two
    windows. Equal arguments give equal plans.

    Args:
        queues: Upcoming work, one queue per job. A window ends early where a queue that is to be
            extended later runs out of steps, so each should hold as many as there are places.
        limits: What the plan is made for.
        max_places: The most places of the window.
        policy: ``"makespan"``: the run as a whole ends soonest. ``"fair"``: each job gets its share
            at any time.
        effort: Samples to place over all ways of a search; 0 for none.

    Raises:
        PlanError: A setting out of range, two queues of one name, or a sample above the capacity.
    """
    for name, value, least in (("max_places", max_places, 1), ("effort", effort, 0)):
        if value < least:
            raise PlanError(f"{name} is {value}; it must be an integer of at least {least}.")
    if policy not in get_args(Policy):
        raise PlanError(f'policy is {policy!r}; allowed: "makespan" or "fair".')
    samples = sum(queue.sample_count for queue in queues)
    if policy == "makespan" and _hold_all(queues) and FEWEST_WAYS * samples <= effort:
        plan = plan_run(queues, limits, effort=min(effort, MOST_WAYS * samples))
        return replace(plan, places=plan.places[:max_places])
    return _list_schedule(queues, limits, max_places, policy)


def join(queues: Sequence[JobQueue], newcomer: JobQueue) -> tuple[JobQueue, ...]:
    """The queues with one more, whether it is new or comes back after a pause.

    It is taken to be served as much as the least served of the others: without that it would have
    all places until it had caught up with jobs that have long been running.

    Raises:
        PlanError: There is a queue of its name.
    """
    if any(queue.name == newcomer.name for queue in queues):
        raise PlanError(
            f"job {newcomer.name!r} is among the queues; each job has one. Give the newcomer "
            "another name, or drop the queue that is there."
        )
    served = [queue.served for queue in queues if queue.remaining_steps]
    return *queues, replace(newcomer, served=max(newcomer.served, min(served, default=0.0)))


def _hold_all(queues: Sequence[JobQueue]) -> bool:
    return all(queue.remaining_steps == len(queue.batches) for queue in queues)


def _list_schedule(
    queues: Sequence[JobQueue], limits: Limits, max_places: int, policy: Policy
) -> Plan:
    check_queues(queues, limits)
    places = HORIZON * max_places
    chains = make_chains([_within(queue, places, limits) for queue in queues], limits)
    scheduler = Scheduler(chains, limits)
    scheduler.run(Tuning.plain(chains, limits, policy), places)
    draft = balance(scheduler.places, chains, limits)
    return to_plan(draft[:max_places], chains, limits)


def _within(queue: JobQueue, places: int, limits: Limits) -> JobQueue:
    """The queue without steps that cannot begin within ``places``, each S·D behind the one before.

    The chains of 64 jobs with 64 steps each take 60 ms, of 16 steps each 15 ms.
    """
    batches = queue.batches[: -(-places // limits.distance)]
    if len(batches) == len(queue.batches):
        return queue
    evals = {step: batch for step, batch in queue.evals.items() if step <= batches[-1].step}
    return replace(queue, batches=batches, evals=evals)
