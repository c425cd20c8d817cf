"""One job's writes, one after another, on an executor that all jobs share."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class InOrder(Generic[T]):
    """Runs what it is given in that order and never two at once, however many workers there are."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._waiting: deque[tuple[Future[T], Callable[[], T]]] = deque()
        self._one_at_a_time = threading.Lock()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run ``work`` after what was given before; one that has not begun can be cancelled."""
        future: Future[T] = Future()
        self._waiting.append((future, work))
        self._executor.submit(self._run_next)
        return future

    def _run_next(self) -> None:
        # Taken under the lock: a worker that is late must not run the next one first.
        with self._one_at_a_time:
            future, work = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                _run(future, work)


def _run(future: Future[Any], work: Callable[[], Any]) -> None:
    try:
        result = work()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
