"""A run in windows as training goes through it: jobs come and go, and windows are cut."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lorafusion.planner.plan import Limits, Place
from lorafusion.planner.queue import Batch, JobQueue, advance
from lorafusion.planner.schedule import Policy
from lorafusion.planner.verify import verify_plan
from lorafusion.planner.windows import join, next_window


@dataclass(frozen=True)
class Script:
    """A job, and the turns at which it comes, goes aside, comes back, and is cancelled."""

    whole: JobQueue
    arrives: int = 0
    pauses: int | None = None
    resumes: int = 0
    cancelled: int | None = None


@dataclass
class Service:
    """Plans one window a turn, each from queues that hold ``depth`` steps at most."""

    limits: Limits
    depth: int
    policy: Policy
    effort: int = 0
    scripts: Sequence[Script] = ()
    queues: tuple[JobQueue, ...] = ()
    places: list[Place] = field(default_factory=list[Place])
    came: dict[str, int] = field(default_factory=dict[str, int])
    aside: dict[str, JobQueue] = field(default_factory=dict[str, JobQueue])

    @property
    def through(self) -> bool:
        """Whether nothing is left of anyone who is here."""
        return all(queue.empty and not queue.remaining_steps for queue in self.queues)

    def edge(self, turn: int) -> None:
        """Who comes and goes before the window of this turn."""
        for script in self.scripts:
            name = script.whole.name
            if turn == script.arrives:
                self.came[name] = len(self.places)
                begun = replace(script.whole, batches=(), evals=before(script.whole))
                self.queues = join(self.queues, begun)
            if turn == script.pauses:
                self.aside |= {q.name: q for q in self.queues if q.name == name}
                self.queues = tuple(q for q in self.queues if q.name != name)
            if turn == script.resumes and name in self.aside:
                self.queues = join(self.queues, self.aside.pop(name))
            if turn == script.cancelled:
                self.queues = tuple(q for q in self.queues if q.name != name)
                self.aside.pop(name, None)
        by_name = {script.whole.name: script.whole for script in self.scripts}
        self.queues = tuple(refilled(q, by_name[q.name], self.depth) for q in self.queues)

    def window(self, size: int, keep: int | None = None) -> None:
        """The next window, of which training runs ``keep`` places before it is planned anew."""
        plan = next_window(
            self.queues, self.limits, max_places=size, policy=self.policy, effort=self.effort
        )
        verify_plan(plan, self.queues)
        assert len(plan.places) <= size
        assert plan.places or all(queue.empty for queue in self.queues)
        plan = replace(plan, places=plan.places[:keep])
        self.queues = advance(self.queues, plan)
        self.places += plan.places


def before(whole: JobQueue) -> dict[int, Batch]:
    """The eval before the first step, or all there are where there is no step."""
    first = whole.batches[0].step if whole.batches else None
    return {t: batch for t, batch in whole.evals.items() if first is None or t < first}


def refilled(queue: JobQueue, whole: JobQueue, depth: int) -> JobQueue:
    """``queue`` with steps of ``whole`` behind it; the batches of ``whole`` are all there are."""
    end = len(whole.batches) - queue.remaining_steps + len(queue.batches)
    more = whole.batches[end : end + depth - len(queue.batches)]
    return queue.extend(more, {b.step: whole.evals[b.step] for b in more if b.step in whole.evals})


def steps(
    count: int, batch_size: int, tokens: int | Callable[[], int], first: int = 1
) -> tuple[Batch, ...]:
    length = tokens if callable(tokens) else lambda: tokens
    return tuple(
        Batch(step, tuple(range(batch_size)), tuple(length() for _ in range(batch_size)))
        for step in range(first, first + count)
    )


def lognormal(seed: int, median: int, most: int) -> Callable[[], int]:
    rng = random.Random(seed)
    return lambda: min(most, 1 + int(rng.lognormvariate(0, 0.6) * median))


def places_of(service: Service, name: str) -> list[int]:
    return [i for i, place in enumerate(service.places) if name in jobs_of(place)]


def jobs_of(place: Place) -> Mapping[str, int]:
    return {segment.job: sum(segment.loads) for segment in place.segments}


def loads(service: Service, until: int | None = None) -> dict[str, int]:
    total: dict[str, int] = {}
    for place in service.places[:until]:
        for name, load in jobs_of(place).items():
            total[name] = total.get(name, 0) + load
    return total


def turns(service: Service, count: int, *, size: int = 64) -> Iterator[int]:
    for turn in range(count):
        service.edge(turn)
        service.window(size)
        yield turn


def longest_wait(service: Service, whole: JobQueue) -> int:
    """Most places that the job was ready for in a row without standing in one."""
    ready = service.came[whole.name]
    longest = 0
    for index, place in enumerate(service.places):
        if whole.name in jobs_of(place):
            longest = max(longest, index - ready)
            ended = any(job == whole.name for job, _ in place.completes)
            ready = index + (service.limits.distance if ended else 1)
    if any(queue.name == whole.name and queue.remaining_steps for queue in service.queues):
        longest = max(longest, len(service.places) - ready)
    return longest
