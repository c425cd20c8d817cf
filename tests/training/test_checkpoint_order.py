"""Writes of one job stay in order on an executor that many jobs and several workers share."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import partial

import pytest

from lorafusion.training.in_order import InOrder

JOBS, WORKS, WORKERS = 6, 30, 4


class Diary:
    """What one job's works did, and whether two of them ran at once."""

    def __init__(self, seed: int) -> None:
        self.done: list[int] = []
        self.overlaps = 0
        self._busy = threading.Lock()
        self._pace = random.Random(seed)

    def work(self, number: int) -> int:
        if not self._busy.acquire(blocking=False):
            self.overlaps += 1
            return -1
        time.sleep(self._pace.uniform(0, 0.001))
        self.done.append(number)
        self._busy.release()
        return number


def test_each_job_keeps_its_order_and_each_future_is_of_its_work():
    diaries = [Diary(seed) for seed in range(JOBS)]
    with ThreadPoolExecutor(WORKERS) as pool:
        orders = [InOrder[int](pool) for _ in diaries]
        futures = [
            (number, order.submit(partial(diary.work, number)))
            for number in range(WORKS)
            for diary, order in zip(diaries, orders, strict=True)
        ]
        for number, future in futures:
            assert future.result(10) == number
    for diary in diaries:
        assert diary.overlaps == 0
        assert diary.done == list(range(WORKS))


def test_an_error_and_a_cancelled_work_leave_the_others_alone():
    gate, done = threading.Event(), list[str]()
    with ThreadPoolExecutor(1) as pool:
        order = InOrder[object](pool)
        order.submit(partial(gate.wait, 10))
        broken = order.submit(partial(int, "x"))
        cancelled = order.submit(partial(done.append, "cancelled"))
        last = order.submit(partial(done.append, "last"))
        assert cancelled.cancel()
        gate.set()
        last.result(10)
        with pytest.raises(ValueError, match="invalid literal"):
            broken.result(10)
        with pytest.raises(CancelledError):
            cancelled.result(10)
    assert done == ["last"]
