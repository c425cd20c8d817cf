"""Fill places with the next samples of all jobs: longest job first, then best fit.

At each place the candidates are the samples of every job's current step. The job with the most
remaining work takes what fits, largest first, so that the longest chain of steps is never the one
that waits. The room it leaves goes to the largest sample of any job that still fits. A job that
waits keeps its remaining work while the others' shrinks, so it comes first sooner or later:
nothing starves. Evals that are due go before training, because they hold up their job's next step,
and share places with each other.

Cost: one bisection and one scan of the jobs that hold that exact length per sample.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence

from lorafusion.errors import PlanError
from lorafusion.planner.plan import Place, PlaceKind, Plan, PlannedSegment
from lorafusion.planner.queue import Batch, JobQueue

__all__ = ["plan_window"]


def plan_window(
    queues: Sequence[JobQueue],
    *,
    capacity: int,
    stages: int = 1,
    replicas: int = 1,
    max_places: int,
) -> Plan:
    """Plan the next window. Equal queues give equal plans.

    A window ends when the queues are used up or after ``max_places``, which may cut a step in two;
    :func:`lorafusion.planner.queue.advance` gives the queues that the next call goes on from.
    No-op places stand only where every job waits for its last step to come back.

    Args:
        queues: Upcoming work, one queue per job. Between equals the earlier comes first.
        capacity: The most tokens a place may hold.
        stages: Pipeline stages S.
        replicas: Replicas D; step t+1 begins at least S·D places after the last of step t.
        max_places: The most places of the window.

    Raises:
        PlanError: A setting below 1, two queues of one name, or a sample longer than ``capacity``.
    """
    settings = {"capacity": capacity, "stages": stages, "replicas": replicas}
    _check_settings({**settings, "max_places": max_places})
    _check_names(queues)
    _check_lengths(queues, capacity)
    window = _Window(queues, capacity=capacity, distance=stages * replicas)
    places: list[Place] = []
    while len(places) < max_places and window.unfinished:
        places.append(window.place(len(places)))
    return Plan(capacity=capacity, stages=stages, replicas=replicas, places=tuple(places))


class _Window:
    """The state while places are filled one after another."""

    def __init__(self, queues: Sequence[JobQueue], *, capacity: int, distance: int) -> None:
        self._names = [queue.name for queue in queues]
        self._capacity = capacity
        self._distance = distance
        self._remaining = [queue.remaining_tokens for queue in queues]
        self._chains = [deque(_chain(queue)) for queue in queues]
        self._pools: dict[PlaceKind, _Pool] = {"train": _Pool(), "eval": _Pool()}
        # place -> jobs whose next entry may stand from there on
        self._waiting: dict[int, list[int]] = defaultdict(list)
        for job, queue in enumerate(queues):
            if not queue.empty:
                self._waiting[queue.ready_at].append(job)
        self.unfinished = sum(not queue.empty for queue in queues)

    def place(self, index: int) -> Place:
        """Fill the place at ``index``; to be called with 0, 1, 2 and so on."""
        for job in self._waiting.pop(index, ()):
            kind, batch = self._chains[job][0]
            self._pools[kind].add(job, batch)
        for kind in ("eval", "train"):
            if self._pools[kind].open:
                return self._fill(kind, index)
        return Place("noop")

    def _fill(self, kind: PlaceKind, index: int) -> Place:
        pool = self._pools[kind]
        taken = pool.fill(self._capacity, sorted(pool.open, key=self._precedence))
        segments: list[PlannedSegment] = []
        completes: list[tuple[str, int]] = []
        for job in sorted(taken):
            batch = self._chains[job][0][1]
            segment = _segment(self._names[job], batch, sorted(taken[job]))
            segments.append(segment)
            if kind == "train":
                self._remaining[job] -= sum(segment.lengths)
            if job not in pool.open:
                completes.append((segment.job, segment.step))
                self._finish(job, index + (self._distance if kind == "train" else 1))
        return Place(kind, tuple(segments), tuple(completes))

    def _finish(self, job: int, next_from: int) -> None:
        self._chains[job].popleft()
        if self._chains[job]:
            self._waiting[next_from].append(job)
        else:
            self.unfinished -= 1

    def _precedence(self, job: int) -> tuple[int, int]:
        return -self._remaining[job], job


class _Pool:
    """The samples that may be placed now, of one kind, found by length."""

    def __init__(self) -> None:
        self.open: dict[int, _OpenBatch] = {}
        self._lengths: list[int] = []  # distinct lengths of all open batches, ascending
        self._jobs_at: dict[int, set[int]] = {}  # length -> jobs with such a sample

    def add(self, job: int, batch: Batch) -> None:
        """Make the samples of the job's current batch available."""
        opened = _OpenBatch(batch)
        self.open[job] = opened
        for length in opened.positions:
            if length not in self._jobs_at:
                self._jobs_at[length] = set()
                insort(self._lengths, length)
            self._jobs_at[length].add(job)

    def fill(self, capacity: int, order: Sequence[int]) -> dict[int, list[int]]:
        """Take samples of at most ``capacity`` tokens out of the pool.

        Args:
            capacity: Tokens.
            order: The open jobs, the most urgent first.

        Returns:
            Job -> positions in its batch.
        """
        rank = {job: index for index, job in enumerate(order)}
        taken: dict[int, list[int]] = defaultdict(list)
        room = capacity
        first = self.open[order[0]].lengths
        while (index := bisect_right(first, room) - 1) >= 0:
            length = first[index]
            taken[order[0]].append(self._take(order[0], length))
            room -= length
        while (index := bisect_right(self._lengths, room) - 1) >= 0:
            length = self._lengths[index]
            job = min(self._jobs_at[length], key=rank.__getitem__)
            taken[job].append(self._take(job, length))
            room -= length
        return taken

    def _take(self, job: int, length: int) -> int:
        opened = self.open[job]
        position, gone = opened.take(length)
        if gone:
            self._jobs_at[length].remove(job)
            if not self._jobs_at[length]:
                del self._jobs_at[length]
                del self._lengths[bisect_left(self._lengths, length)]
        if not opened.lengths:
            del self.open[job]
        return position


class _OpenBatch:
    """The samples of one batch that are not placed yet: sorted lengths, and positions by length."""

    def __init__(self, batch: Batch) -> None:
        self.lengths = sorted(batch.lengths)
        self.positions: dict[int, list[int]] = defaultdict(list)
        for position in reversed(range(len(batch.lengths))):
            self.positions[batch.lengths[position]].append(position)

    def take(self, length: int) -> tuple[int, bool]:
        """Position of the first sample of that length, and whether it was the last such."""
        del self.lengths[bisect_left(self.lengths, length)]
        position = self.positions[length].pop()
        return position, not self.positions[length]


def _chain(queue: JobQueue) -> Iterator[tuple[PlaceKind, Batch]]:
    """The job's entries in the order in which they must stand."""
    steps = {batch.step: batch for batch in queue.batches}
    for step in sorted({*steps, *queue.evals}):
        if step in steps:
            yield "train", steps[step]
        if step in queue.evals:
            yield "eval", queue.evals[step]


def _segment(job: str, batch: Batch, positions: Sequence[int]) -> PlannedSegment:
    samples = tuple(batch.samples[position] for position in positions)
    lengths = tuple(batch.lengths[position] for position in positions)
    return PlannedSegment(job, batch.step, samples, lengths)


def _check_settings(settings: dict[str, int]) -> None:
    for name, value in settings.items():
        if value < 1:
            raise PlanError(f"{name} is {value}; it must be an integer of at least 1.")


def _check_names(queues: Sequence[JobQueue]) -> None:
    counts = Counter(queue.name for queue in queues)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise PlanError(f"more than one queue for the jobs {twice}; each job has one queue.")


def _check_lengths(queues: Sequence[JobQueue], capacity: int) -> None:
    too_long = [
        f"job {queue.name!r}, sample {sample}: {length} tokens"
        for queue in queues
        for batch in (*queue.batches, *queue.evals.values())
        for sample, length in zip(batch.samples, batch.lengths, strict=True)
        if length > capacity
    ]
    if too_long:
        raise PlanError(
            f"longer than the capacity of {capacity} tokens: {'; '.join(too_long)}. "
            "Raise the capacity or lower the job's max_seq_len."
        )
