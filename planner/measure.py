"""Integer loads: one number a sample that respects predicted time and memory at once.

A microbatch is full when it takes the capacity of time on the slowest stage, or all of the memory
for activations on any stage. What a sample takes of either is linear in its tokens, its squared
length, its labelled rows, so its load is the larger of its two shares, in :data:`UNITS`, rounded
up. The sum of the larger shares is at least the larger of the sums: samples whose loads fit are
within both. Where memory never binds, loads are time alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from lorafusion.errors import PlanError
from lorafusion.planner.cost import CostModel, Counts, Linear
from lorafusion.planner.memory import memory_share
from lorafusion.planner.plan import Limits
from lorafusion.planner.queue import JobQueue

__all__ = ["UNITS", "Measure", "measured"]

UNITS = 8192
"""Loads that a capacity is divided into: the planner's exact fill works on as many bits."""

# In units. A product of floats that is this little above an integer is that integer; 8,192 such
# samples in a microbatch are above its capacity by a millionth.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Measure:
    """How samples are measured for a given capacity.

    Attributes:
        time: Share of the capacity of time that what is in a microbatch takes on the slowest stage.
            What every microbatch takes is off the capacity beforehand, here and in ``memory``.
        memory: Share of the memory for activations that it takes on the fullest stage, as if all
            microbatches in flight were like it; None where memory is not looked at.
        capacity_s: Predicted seconds, forward and backward, that a microbatch may take there.
        stages: Pipeline stages.
        units: Loads of a full microbatch.
        fixed: Of the same capacity of time, what every microbatch takes.
    """

    time: Linear
    memory: Linear | None
    capacity_s: float
    stages: int = 1
    units: int = UNITS
    fixed: float = 0.0

    @classmethod
    def of(
        cls,
        cost: CostModel,
        typical: Counts,
        capacity_s: float,
        *,
        memory_bytes: float | None = None,
        units: int = UNITS,
    ) -> Measure:
        """The measure of a cost model.

        Args:
            cost: The stages.
            typical: Work like that of the run, for which stage is the slowest; in any amount.
            capacity_s: As the attribute.
            memory_bytes: What the run may use of each stage's device; None: memory is not looked
                at.
            units: As the attribute.

        Raises:
            PlanError: A capacity that is not finite, or not above what every microbatch takes; or
                a stage whose memory is full without any sample.
        """
        if not 0 < capacity_s < math.inf or units < 1:
            raise PlanError(
                f"capacity: {capacity_s} s in {units} units; allowed: a finite time above 0, and 1 "
                "unit or more."
            )
        seconds = cost.stages[cost.slowest(typical)].seconds
        left = capacity_s - seconds.fixed
        if left <= 0:
            raise PlanError(
                f"capacity: {capacity_s:g} s, but every microbatch takes {seconds.fixed:g} s on "
                "the slowest stage, whatever is in it; allowed: more than that. Raise the capacity."
            )
        memory = None if memory_bytes is None else memory_share(cost, memory_bytes)
        time = replace(seconds, fixed=0.0).scaled(1 / left)
        return cls(time, memory, capacity_s, len(cost.stages), units, seconds.fixed / left)

    def limits(self, replicas: int = 1) -> Limits:
        """The limits to plan with.

        Raises:
            PlanError: Fewer than one replica.
        """
        if replicas < 1:
            raise PlanError(f"{replicas} replicas; allowed: 1 or more.")
        return Limits(
            self.units,
            self.stages,
            replicas,
            segment_load=self.segment_load,
            place_load=round(self.units * self.fixed),
        )

    @property
    def segment_load(self) -> int:
        """What each job in a microbatch adds to the loads of its samples."""
        larger = max(part.segment for part in self._parts)
        return math.ceil(self.units * larger - _ROUNDING)

    def loads(
        self,
        lengths: Sequence[int],
        labelled: Sequence[int],
        rank: int,
        *,
        job: str = "",
        samples: Sequence[int] = (),
    ) -> tuple[int, ...]:
        """The load of each sample, at least 1.

        Args:
            lengths: Tokens of each sample.
            labelled: Those of them that have a target.
            rank: Rank of the job's adapter.
            job: The job's name, for errors.
            samples: Dataset indices, for errors; the positions in ``lengths`` where empty.

        Raises:
            PlanError: A sample fits no microbatch, not even alone.
        """
        # One look-up a length, and two products a sample: 640,000 samples take half a second.
        distinct = set(lengths)
        time, memory = (
            {n: self._of_tokens(part, n, rank) for n in distinct} for part in self._parts
        )
        row_s, row_bytes = (self.units * part.labelled for part in self._parts)
        loads = [
            math.ceil(seconds)
            if (seconds := time[n] + row_s * rows) > (held := memory[n] + row_bytes * rows)
            else math.ceil(held)
            for n, rows in zip(lengths, labelled, strict=True)
        ]
        if min(loads, default=1) < 1:
            loads = [max(1, load) for load in loads]
        most = self.units - self.segment_load
        if max(loads, default=0) > most:
            at = next(position for position, load in enumerate(loads) if load > most)
            n, rows = lengths[at], labelled[at]
            slow = time[n] + row_s * rows > memory[n] + row_bytes * rows
            raise PlanError(
                f"{f'job {job!r}, ' if job else ''}sample {samples[at] if samples else at}: its "
                f"{n} tokens, {rows} of them labelled, take {loads[at] / most:.3g} times the "
                f"{'seconds' if slow else 'memory'} of a microbatch, so it fits none, not even "
                "alone. Raise the capacity, or lower max_seq_len."
            )
        return tuple(loads)

    def _of_tokens(self, part: Linear, length: int, rank: int) -> float:
        """Units that a sample takes beside its labelled rows, less what counts as rounding."""
        share = (part.token + rank * part.token_rank + part.square * length) * length
        return self.units * share - _ROUNDING

    @property
    def _parts(self) -> tuple[Linear, Linear]:
        return self.time, self.memory or Linear()


def measured(queue: JobQueue, measure: Measure) -> JobQueue:
    """``queue`` with the loads of its samples measured, before anything of it is planned.

    What remains of the run beyond the queue's batches is taken to have as much load for what it
    had before as they have.

    Raises:
        PlanError: A sample fits no microbatch; names the job and the sample.
    """
    entries = (*queue.batches, *queue.evals.values())

    def column(name: str) -> list[int]:
        return [value for batch in entries for value in getattr(batch, name)]

    # In one call: a job may have 100,000 small batches.
    loads = measure.loads(
        column("lengths"),
        column("labelled"),
        queue.rank,
        job=queue.name,
        samples=column("samples"),
    )
    ends = accumulate(len(batch.samples) for batch in entries)
    loaded = [
        replace(batch, loads=loads[end - len(batch.samples) : end])
        for batch, end in zip(entries, ends, strict=True)
    ]
    batches = tuple(loaded[: len(queue.batches)])
    load = sum(batch.load for batch in batches)
    # Rounded up, so that it is at least the batches' own.
    remaining = -(-queue.remaining_load * load // queue.load) if load else queue.remaining_load
    return replace(
        queue,
        batches=batches,
        evals=dict(zip(queue.evals, loaded[len(batches) :], strict=True)),
        remaining_load=remaining,
    )
