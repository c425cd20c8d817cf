"""Plan the next window in a process of its own while this one trains.

The process is started when it is first asked for something, and what it answers is verified here
before anybody sees it. A thread serves the pipes and verifies, so that neither a slow planner nor a
large request holds up training.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Self

from lorafusion.errors import PlanError
from lorafusion.planner.child import Child, worker_command
from lorafusion.planner.plan import Limits, Plan
from lorafusion.planner.queue import JobQueue
from lorafusion.planner.request import Request, read_answer
from lorafusion.planner.schedule import Policy
from lorafusion.planner.search import EFFORT
from lorafusion.planner.verify import verify_plan

__all__ = ["Ahead"]

TRIES = 2
"""Processes that a request is given to, one after the other, where they die of it."""

PATIENCE_S = 600.0
"""Seconds after which a planner that does not answer is given up; a window takes under a second."""


class Ahead:
    """One request at a time to a planner in another process.

    Use it in a ``with`` block: at its end the process is gone. All methods are for one thread.
    """

    def __init__(
        self, *, command: Sequence[str] | None = None, patience_s: float = PATIENCE_S
    ) -> None:
        """Nothing is started yet.

        Args:
            command: What to start instead of :mod:`lorafusion.planner.worker`.
            patience_s: Seconds that :meth:`take` waits at most.
        """
        self._patience_s = patience_s
        self._child = Child(command or worker_command())
        self._asked: Future[Plan] | None = None
        self._requests: SimpleQueue[tuple[Request, Future[Plan]] | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """:meth:`close`."""
        self.close()

    @property
    def asked(self) -> bool:
        """Whether there is a plan to :meth:`take`, now or later."""
        return self._asked is not None

    def submit(
        self,
        queues: Sequence[JobQueue],
        limits: Limits,
        *,
        max_places: int,
        policy: Policy = "makespan",
        effort: int = EFFORT,
    ) -> None:
        """Ask for :func:`lorafusion.planner.windows.next_window` of the same arguments."""
        assert self._asked is None, "a plan is asked for already: take or discard it first"
        assert not self._closed, "submit after close"
        request = Request(tuple(queues), limits, max_places, policy, effort)
        self._asked = Future()
        if self._thread is None:
            # A daemon: were close() forgotten, the end of this process must not wait for it.
            self._thread = Thread(target=self._serve, name="planner", daemon=True)
            self._thread.start()
        self._requests.put((request, self._asked))

    def take(self) -> Plan:
        """The plan that was asked for, verified; waits until it is there.

        Raises:
            PlanError: What the planner raised; or its answer breaks a rule, its process died twice,
                or it did not answer.
        """
        assert self._asked is not None, "no plan is asked for"
        asked, self._asked = self._asked, None
        try:
            return asked.result(self._patience_s)
        except TimeoutError:
            self.close()
            raise PlanError(
                f"the planner's process has not answered for {self._patience_s:g} s, and was "
                "ended. Is the machine out of memory, or was the process suspended?"
            ) from None

    def discard(self) -> None:
        """Let go of what was asked for; the next request waits until that is through."""
        if self._asked is not None:
            self._asked.cancel()
        self._asked = None

    def close(self) -> None:
        """End the process, which holds nothing that could be lost. A second call does nothing."""
        self.discard()
        self._closed = True
        self._child.kill()
        self._requests.put(None)
        if self._thread is not None:
            self._thread.join()
        self._child.close()

    def _serve(self) -> None:
        """Serve requests one by one, until there is a None among them."""
        # The process inherits the mask, and so ignores a Ctrl-C from its first instant on.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        while (waiting := self._requests.get()) is not None:
            request, future = waiting
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._answer(request))
            except BaseException as error:
                future.set_exception(error)

    def _answer(self, request: Request) -> Plan:
        line = request.to_json()
        ends: list[str] = []
        while len(ends) < TRIES:
            try:
                answer = self._child.ask(line)
            except ChildProcessError as error:
                ends.append(str(error))
                continue
            plan = read_answer(answer)
            _check(plan, request)
            return plan
        raise PlanError(
            f"the planner's process did not answer in {TRIES} tries ({'; '.join(ends)}). What it "
            "said stands on the standard error. Is the machine out of memory?"
        )


def _check(plan: Plan, request: Request) -> None:
    if plan.limits != request.limits or len(plan.places) > request.max_places:
        raise PlanError(
            f"the planner's process answered with {len(plan.places)} places for {plan.limits}; "
            f"asked were at most {request.max_places} for {request.limits}."
        )
    verify_plan(plan, request.queues)
