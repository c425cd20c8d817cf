"""A team of one: a run whose base is whole, in this process."""

from __future__ import annotations

from queue import Empty, SimpleQueue

import torch

from lorafusion.training.options import Traces
from lorafusion.training.recorders import make_recorder
from lorafusion.training.team import Message, Team


class _Pigeonhole:
    """The post of rank 0 alone: what it reports comes back to it, from any thread."""

    def __init__(self) -> None:
        self._messages: SimpleQueue[Message] = SimpleQueue()

    def publish(self, message: Message) -> None:
        """There is nobody else."""

    def report(self, message: Message) -> None:
        self._messages.put(message)

    def poll(self) -> list[tuple[int, Message]]:
        found: list[tuple[int, Message]] = []
        while True:
            try:
                found.append((0, self._messages.get_nowait()))
            except Empty:
                return found

    def wait(self) -> tuple[int, Message]:
        return 0, self._messages.get()


def team_of_one(traces: Traces | None = None) -> Team:
    """The only rank of a run, on the CPU.

    Args:
        traces: What is kept of what it does, and where; None: nothing.
    """
    return Team(0, 1, torch.device("cpu"), _Pigeonhole(), make_recorder(traces))
