"""Whether the replicas of a pipeline share every job, or each trains jobs of its own.

*Together*: a global batch's microbatches go to all replicas in turns. Each has its share to the
end, but their gradients are added up, and every replica does every job's optimizer step. *Spread*:
each job has a home, where alone its steps are done, and nothing is added up; the replica that has
most to do ends last. Both are planned and simulated on the beginning of the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from lorafusion.planner.capacity import sample_run
from lorafusion.planner.cost import CostModel
from lorafusion.planner.place_times import PlaceTimes, place_times
from lorafusion.planner.plan import Limits, ReplicaMode
from lorafusion.planner.queue import JobQueue
from lorafusion.planner.search import plan_run
from lorafusion.planner.simulate import predict_bubble

__all__ = ["Sharing", "find_homes", "share_replicas"]

# Full places of each rank that stand for the run, and samples placed in search of their plan.
_PLACES, _EFFORT = 40, 4_000
# Spread has to be faster by this much: a prediction is not better than that.
_MARGIN = 0.03


@dataclass(frozen=True, slots=True)
class Sharing:
    """How the replicas share the jobs.

    Attributes:
        homes: Job -> its replica; None: every job is on all of them.
        why: In words, with both predictions where there are any.
    """

    homes: Mapping[str, int] | None
    why: str


def share_replicas(
    queues: Sequence[JobQueue], limits: Limits, cost: CostModel | None, mode: ReplicaMode = "auto"
) -> Sharing:
    """Choose, for more than one replica.

    Args:
        queues: All of each job, with its adapter's rank.
        limits: What is planned for.
        cost: Predicts each stage, with the sum over the replicas in its optimizer steps; None
            where nothing can be predicted.
        mode: ``auto``: what is predicted to be faster; else this.
    """
    homes = find_homes(queues, limits.replicas)
    if cost is None or not any(queue.batches for queue in queues):
        said = "nothing can be predicted for this base"
        return Sharing(homes, said) if mode == "spread" else Sharing(None, said)
    sample = _beginning(queues, limits.capacity * _PLACES * limits.distance)
    together = _seconds(sample, limits, cost)
    spread = _spread_seconds(_by_home(sample, homes, limits.replicas), limits, cost)
    shares = _shares(queues, homes, limits.replicas)
    pays = spread < (1 - _MARGIN) * together
    chosen = (pays and mode == "auto") or mode == "spread"
    asked = "" if mode == "auto" else ", as asked for"
    if chosen:
        words = f"each job is on one of {limits.replicas} replicas{asked}"
        ratio = f"{spread / together:.2f}x the time of splitting every batch over all of them"
    else:
        words = f"every batch is split over {limits.replicas} replicas{asked}"
        ratio = f"{together / spread:.2f}x the time of a replica for each job"
    why = f"{words}: predicted to take {ratio} (the busiest would have {max(shares):.0%} of it all)"
    return Sharing(homes if chosen else None, why)


def find_homes(queues: Sequence[JobQueue], replicas: int) -> dict[str, int]:
    """Job -> replica: the largest first, each to the one that has least."""
    loads = [0] * replicas
    homes: dict[str, int] = {}
    for queue in sorted(queues, key=lambda queue: -queue.remaining_load):
        home = loads.index(min(loads))
        homes[queue.name] = home
        loads[home] += queue.remaining_load
    return homes


def _beginning(queues: Sequence[JobQueue], load: int) -> Sequence[JobQueue]:
    """The beginning of the run, of about so much load."""
    whole = sum(batch.load for queue in queues for batch in queue.batches)
    tokens = sum(sum(batch.lengths) for queue in queues for batch in queue.batches)
    return sample_run(queues, math.ceil(tokens * min(1.0, load / whole)))


def _by_home(
    queues: Sequence[JobQueue], homes: Mapping[str, int], replicas: int
) -> list[list[JobQueue]]:
    return [
        [queue for queue in queues if homes[queue.name] == replica] for replica in range(replicas)
    ]


def _shares(queues: Sequence[JobQueue], homes: Mapping[str, int], replicas: int) -> list[float]:
    whole = sum(queue.remaining_load for queue in queues) or 1
    of_each = _by_home(queues, homes, replicas)
    return [sum(queue.remaining_load for queue in of) / whole for of in of_each]


def _seconds(queues: Sequence[JobQueue], limits: Limits, cost: CostModel) -> float:
    times = _times(queues, limits, cost)
    return predict_bubble(times, stages=limits.stages, replicas=limits.replicas)[0]


def _spread_seconds(homes: Sequence[Sequence[JobQueue]], limits: Limits, cost: CostModel) -> float:
    """Of a pipeline whose places are as slow as the slowest of each turn, which all wait for."""
    alone = replace(limits, replicas=1)
    columns = [_times(queues, alone, cost) for queues in homes]
    idle = PlaceTimes.idle(limits.stages)
    turns = [_slowest(turn) for turn in zip_longest(*columns, fillvalue=idle)]
    return predict_bubble(turns, stages=limits.stages)[0]


def _slowest(turn: Sequence[PlaceTimes]) -> PlaceTimes:
    return PlaceTimes(
        forward=tuple(map(max, zip(*(each.forward for each in turn), strict=True))),
        backward=tuple(map(max, zip(*(each.backward for each in turn), strict=True))),
        step=tuple(map(max, zip(*(each.step for each in turn), strict=True))),
        transfer_s=max(each.transfer_s for each in turn),
    )


def _times(queues: Sequence[JobQueue], limits: Limits, cost: CostModel) -> list[PlaceTimes]:
    if not queues:
        return []
    plan = plan_run(queues, limits, effort=_EFFORT)
    return place_times(plan, cost, {queue.name: queue.rank for queue in queues})
