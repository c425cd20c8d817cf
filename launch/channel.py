"""Small messages to and from one rank over gloo, sent and received by threads."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import torch
import torch.distributed as dist

from lorafusion.launch.ranks import FOREVER

Envelope = dict[str, Any]
"""``kind`` says what it is; the rest depends on it. Goes to JSON and back."""

_GOODBYE = {"kind": "bye"}


class Channel:
    """Between this rank and one other, which has the other end. Messages keep their order."""

    def __init__(
        self,
        rank: int,
        group: dist.ProcessGroup,
        *,
        on_message: Callable[[int, Envelope], None],
        on_broken: Callable[[int, str], None],
    ) -> None:
        """Begin.

        Args:
            rank: The other end.
            group: Holds both.
            on_message: Called with ``rank`` and each message, on the receiving thread.
            on_broken: Called with ``rank`` and why, if the other end goes without a goodbye.
        """
        self.rank = rank
        self._group = group
        self._on_message = on_message
        self._on_broken = on_broken
        self._outgoing: SimpleQueue[Envelope] = SimpleQueue()
        self._threads = [
            threading.Thread(target=target, name=f"{name} rank {rank}", daemon=True)
            for target, name in ((self._send_all, "post to"), (self._receive_all, "post from"))
        ]
        for thread in self._threads:
            thread.start()

    def send(self, envelope: Envelope) -> None:
        """Send it some time soon, and return at once."""
        self._outgoing.put(envelope)

    def say_goodbye(self) -> None:
        """Nothing will be sent any more."""
        self.send(_GOODBYE)

    def join(self, deadline: float) -> bool:
        """Wait until both ends have said goodbye, or one is gone; False: not by then.

        Args:
            deadline: As ``time.monotonic()`` counts.
        """
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _send_all(self) -> None:
        while True:
            envelope = self._outgoing.get()
            payload = json.dumps(envelope).encode()
            try:
                self._send(torch.tensor([len(payload)]))
                self._send(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
            except RuntimeError as error:
                self._on_broken(self.rank, str(error))
                return
            if envelope is _GOODBYE:
                return

    def _receive_all(self) -> None:
        while True:
            try:
                size = int(self._receive(torch.empty(1, dtype=torch.int64)))
                payload = self._receive(torch.empty(size, dtype=torch.uint8))
            except RuntimeError as error:
                self._on_broken(self.rank, str(error))
                return
            envelope: Envelope = json.loads(payload.numpy().tobytes())
            if envelope == _GOODBYE:
                return
            self._on_message(self.rank, envelope)

    def _send(self, message: torch.Tensor) -> None:
        work = dist.isend(message, self.rank, group=self._group)
        assert work is not None
        work.wait(FOREVER)

    def _receive(self, buffer: torch.Tensor) -> torch.Tensor:
        work = dist.irecv(buffer, self.rank, group=self._group)
        assert work is not None
        work.wait(FOREVER)
        return buffer
