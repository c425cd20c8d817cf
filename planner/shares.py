"""Fair shares: what each job is charged for its places, and how much it may be behind or ahead.

This is start-time fair queueing (Goyal, Vin and Cheng 1996) for places that are shared. The job
that was served least for its weight is first: it stands in the next place, others beside it as far
as they fit. **The first pays for the whole place, the others for what they take of it, by load.**
If the first paid by load as well, a job of small samples would be first again and again for next to
nothing, and a sample that does not fit beside it would wait for as long as others do fit.

A job that waits for its next step, or takes little, must not save up what it misses, nor must the
others pay for what it had no use for. So nobody is further ahead of the first than a place of its
own and T places of the run, and who stands in a place is no further behind than T places; the rest
of its claim lapses. T places of the run are T * capacity / W of ``served`` for every job, W being
the sum of the weights. (Were they places of the job's own, counted from the most served, a light
job could stay behind a heavy one that waits for ever.)

**How long a job may wait** that is ready, of weight w among n jobs: at most ::

    2 T + W / w + n    places of training

In places of the run, it is ahead of the first by no more than T and its own place, W / w, and the
first is no further behind than T. Whoever is first while it waits is behind it and pays for a whole
place. So another job of weight v is first at most (2 T + W / w) v / W times, and once more because
places are whole; the sum over the others is less than the above. What they take as second does not
count: it only brings them further ahead. This holds at any instant, from what the queues hold
alone, so it does not matter how windows are cut; who joins begins at the least served.

Not in it: evals, which go before and are not charged, as many as are due after the others' steps;
and evening out, which may move a sample within its step by a few times S * D places.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy

from lorafusion.planner.plan import Limits

__all__ = ["CLAIM", "Shares", "claim"]

CLAIM = 16
"""T: places of the run; at least four times S·D, for which a job waits after each of its steps."""


def claim(limits: Limits) -> int:
    """T, see above."""
    return max(CLAIM, 4 * limits.distance)


class Shares:
    """What the jobs of a window were served so far.

    Attributes:
        served: By job: what it has paid for over its weight, in units of load.
    """

    def __init__(self, jobs: Iterable[tuple[str, float, float]], limits: Limits) -> None:
        """``jobs``: name, weight and what it was served, of each that has something to plan."""
        self._capacity = limits.capacity
        self._claim = claim(limits) * limits.capacity
        self._weights: dict[str, float] = {}
        self.served: dict[str, float] = {}
        for name, weight, served in jobs:
            self._weights[name] = weight
            self.served[name] = served

    def copy(self) -> Shares:
        """One that goes its own way from here."""
        other = copy(self)
        other._weights = dict(self._weights)
        other.served = dict(self.served)
        return other

    def charge(self, loads: Mapping[str, int]) -> None:
        """A place of training with so much of each job; of equals, the first named is first."""
        claim = self._claim / sum(self._weights.values())
        ahead = {job: claim + self._capacity / weight for job, weight in self._weights.items()}
        # Where the first was before, as far as the most served show it: its lead is no more.
        now = max(self.served[job] - ahead[job] for job in ahead)
        first = min(loads, key=self.served.__getitem__)
        for job in loads:
            self.served[job] = max(self.served[job], now - claim)
        now = max(now, self.served[first])
        whole = sum(loads.values())
        for job, load in loads.items():
            part = 1.0 if job == first else load / whole
            paid = self.served[job] + part * self._capacity / self._weights[job]
            self.served[job] = min(paid, now + ahead[job])

    def leave(self, job: str) -> None:
        """Nothing is left to plan of the job: where it stands says nothing about the others."""
        del self._weights[job]
