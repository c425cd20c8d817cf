"""How far a rank's clock is from rank 0's, so that their traces can be laid over each other."""

from __future__ import annotations

import time
from queue import SimpleQueue

from lorafusion.launch.post import StarPost

ROUND_TRIPS = 10


def clock_offset(post: StarPost) -> float:
    """Seconds to add to this rank's ``time.perf_counter()`` to get rank 0's at that moment.

    Taken from the fastest of some round trips; it is wrong by half of that one's time at most.

    Raises:
        LostRankError: Rank 0 is gone.
    """
    if post.rank == 0:
        return 0.0
    answers: SimpleQueue[tuple[float, float]] = SimpleQueue()
    post.on("pong", lambda _, answer: answers.put((answer["at"], time.perf_counter())))
    post.on_problem(lambda _: answers.put((0.0, 0.0)))
    measured: list[tuple[float, float]] = []
    for _ in range(ROUND_TRIPS):
        sent = time.perf_counter()
        post.send(0, {"kind": "ping"})
        there, received = answers.get()
        if post.problem is not None:
            raise post.problem
        measured.append((received - sent, there - (sent + received) / 2))
    return min(measured)[1]
