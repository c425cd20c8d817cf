"""Waits for transfers in the order in which they were started, on a thread of its own.

gloo tells nobody whether a transfer is done except who waits for it. A main thread that waited
would hold no buffer too long, but would answer neither signals nor the loss of a distant rank.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

import torch
import torch.distributed as dist

from lorafusion.errors import LorafusionError
from lorafusion.launch.ranks import FOREVER, lost_rank

Arrival = Future[torch.Tensor]


class Transfers:
    """Those of one direction to or from one rank, oldest first."""

    def __init__(self, other: str, device: torch.device, name: str) -> None:
        """``other``: the other end's name; ``name`` is the thread's."""
        self._other = other
        self._device = device
        self._changed = threading.Condition()
        self._running: deque[tuple[dist.Work, torch.Tensor, Arrival]] = deque()
        self._closed = False
        self.error: LorafusionError | None = None
        """Why there will be no more."""
        self._thread = threading.Thread(target=self._wait_for_all, name=name, daemon=True)
        self._thread.start()

    def add(self, work: dist.Work, buffer: torch.Tensor) -> Arrival:
        """Wait for ``work``; its buffer is kept alive until then, and given as the result."""
        arrival = Arrival()
        with self._changed:
            if self.error is not None:
                arrival.set_exception(self.error)
                return arrival
            self._running.append((work, buffer, arrival))
            self._changed.notify_all()
        return arrival

    def fail(self, error: LorafusionError) -> None:
        """Whoever waits, or will wait, gets ``error``; the first one is kept."""
        with self._changed:
            self.error = self.error or error
            for _, _, arrival in self._running:
                _end(arrival, self.error)
            self._changed.notify_all()

    def drain(self, timeout_s: float | None = None) -> bool:
        """Wait until all are done or have failed; False: not within the time."""

        def done() -> bool:
            return not self._running or self.error is not None

        with self._changed:
            return self._changed.wait_for(done, timeout_s)

    def close(self, deadline: float) -> bool:
        """End the thread once all is done; False: it still waits for a transfer by then.

        Args:
            deadline: As ``time.monotonic()`` counts.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def _wait_for_all(self) -> None:
        stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._running or self._closed)
                if not self._running:
                    return
                work, buffer, arrival = self._running[0]
            try:
                _finish(work, stream)
            except RuntimeError as error:
                self.fail(lost_rank(self._other, error))
            with self._changed:
                self._running.popleft()
                _end(arrival, self.error, buffer)
                self._changed.notify_all()
            del work, buffer, arrival  # else kept until the next one is done


def _finish(work: dist.Work, stream: torch.cuda.Stream | None) -> None:
    """Wait on the host. On a GPU by way of a stream of our own, so that no compute waits too."""
    if stream is None:
        work.wait(FOREVER)
        return
    with torch.cuda.stream(stream):
        work.wait()
    stream.synchronize()


def _end(
    arrival: Arrival, error: LorafusionError | None, buffer: torch.Tensor | None = None
) -> None:
    with suppress(InvalidStateError):  # it had failed before it arrived
        if error is not None:
            arrival.set_exception(error)
        elif buffer is not None:
            arrival.set_result(buffer)
