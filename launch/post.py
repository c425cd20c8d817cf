"""Small messages between rank 0 and the others, and what is known of ranks that are gone."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import torch.distributed as dist

from lorafusion.errors import LaunchError, LorafusionError
from lorafusion.launch.channel import Channel, Envelope
from lorafusion.launch.ranks import lost_rank
from lorafusion.training.grid import Grid
from lorafusion.training.team import Message

Handler = Callable[[int, Envelope], None]


class StarPost:
    """One end of the post. See :class:`lorafusion.training.team.Post`.

    Each rank has a channel to rank 0, which has one to each. Whatever ends the run is kept as the
    ``problem``: every call raises it from then on.
    """

    def __init__(self, group: dist.ProcessGroup, grid: Grid) -> None:
        """``group``: gloo, of all ranks, and used for nothing else; ``grid``: how they stand."""
        self.rank, self.ranks = dist.get_rank(), grid.ranks
        self.grid = grid
        self._changed = threading.Condition()
        self._inbox: deque[tuple[int, Message]] = deque()
        self._digest = ""
        self._digests: dict[int, str] = {}  # what each rank has acknowledged last
        self._problem: LorafusionError | None = None
        self._on_problem: list[Callable[[LorafusionError], None]] = []
        self._meetings = 0
        self._present = 0  # how often others have come to a meeting
        self._closing = False
        self._handlers: dict[str, Handler] = {
            "publish": self._published,
            "acknowledge": self._acknowledged,
            "present": self._arrived,
            "ping": self._pinged,
            "report": lambda rank, envelope: self._deliver(rank, envelope["body"]),
        }
        others = range(1, self.ranks) if self.rank == 0 else range(1)
        self._channels = {
            other: Channel(other, group, on_message=self._take, on_broken=self._broken)
            for other in others
        }

    @property
    def problem(self) -> LorafusionError | None:
        """What ends the run: the first that was found."""
        return self._problem

    def on_problem(self, tell: Callable[[LorafusionError], None]) -> None:
        """Call ``tell`` with the problem, at once if there is one. On any thread."""
        with self._changed:
            self._on_problem.append(tell)
            problem = self._problem
        if problem is not None:
            tell(problem)

    def on(self, kind: str, handler: Handler) -> None:
        """Give messages of a kind to ``handler``, on the thread that received them."""
        self._handlers[kind] = handler

    def send(self, rank: int, envelope: Envelope) -> None:
        """Send a message of any kind to a rank (to rank 0 from the others), and return at once."""
        self._channels[rank].send(envelope)

    def broadcast(self, envelope: Envelope) -> None:
        """Send a message to all that there is a channel to, and return at once."""
        for channel in self._channels.values():
            channel.send(envelope)

    def meet(self) -> None:
        """Return once all ranks have called it as often.

        Raises:
            LostRankError: A rank is gone.
        """
        self._meetings += 1
        if self.rank == 0:
            with self._changed:
                everyone = self._meetings * len(self._channels)
                self._wait_for(lambda: self._present >= everyone)
            self.broadcast({"kind": "present"})
            return
        self.send(0, {"kind": "present"})
        with self._changed:
            self._wait_for(lambda: self._present >= self._meetings)

    def publish(self, message: Message) -> None:
        """Rank 0 alone: give all others a message; returns when each has confirmed its hash.

        The hash covers all messages published before, so that one that was lost would be found.

        Raises:
            LostRankError: A rank is gone.
            LaunchError: A rank has something else.
        """
        body = json.dumps(message)
        with self._changed:
            self._check()
            self._digest = chain(self._digest, body)
            self._digests = {}
            self.broadcast({"kind": "publish", "body": body})
            self._wait_for(lambda: len(self._digests) == len(self._channels))
            others = {rank for rank, digest in self._digests.items() if digest != self._digest}
        if others:
            names = ", ".join(self.grid.name(rank) for rank in sorted(others))
            raise LaunchError(
                f"{names} received another plan than rank 0 sent: the hashes differ. The run "
                "cannot go on; start it again with --resume, and see whether the network is sound."
            )

    def report(self, message: Message) -> None:
        """Send rank 0 a message (rank 0: to itself) and return at once.

        Raises:
            LostRankError: Rank 0 is gone.
        """
        with self._changed:
            self._check()
        if self.rank == 0:
            self._deliver(0, json.loads(json.dumps(message)))
        else:
            self.send(0, {"kind": "report", "body": message})

    def poll(self) -> Sequence[tuple[int, Message]]:
        """What has arrived since the last call, with the senders' ranks; does not wait.

        Raises:
            LostRankError: A rank is gone.
        """
        with self._changed:
            self._check()
            found = tuple(self._inbox)
            self._inbox.clear()
        return found

    def wait(self) -> tuple[int, Message]:
        """The next message; waits for it.

        Raises:
            LostRankError: A rank is gone.
        """
        with self._changed:
            self._wait_for(lambda: len(self._inbox) > 0)
            return self._inbox.popleft()

    def wait_for_problem(self, timeout_s: float) -> LorafusionError | None:
        """The problem, which may come within the time."""
        with self._changed:
            self._changed.wait_for(lambda: self._problem is not None, timeout_s)
            return self._problem

    def fail(self, error: LorafusionError) -> None:
        """Every call raises ``error`` from now on, unless something else was first."""
        with self._changed:
            if self._problem is not None or self._closing:
                return
            self._problem = error
            told = list(self._on_problem)
            self._changed.notify_all()
        for tell in told:
            tell(error)

    def close(self, deadline: float) -> bool:
        """Say goodbye, and wait for the others' until the time is over.

        Args:
            deadline: As ``time.monotonic()`` counts.

        Returns:
            Whether all threads have ended. One that has not may crash Python as it ends: leave
            with ``os._exit`` then.
        """
        with self._changed:
            self._closing = True
        for channel in self._channels.values():
            channel.say_goodbye()
        ended = [channel.join(deadline) for channel in self._channels.values()]
        return all(ended)

    def _take(self, rank: int, envelope: Envelope) -> None:
        handler = self._handlers.get(envelope["kind"])
        if handler is not None:
            handler(rank, envelope)

    def _broken(self, rank: int, why: str) -> None:
        self.fail(lost_rank(self.grid.name(rank), why))

    def _published(self, rank: int, envelope: Envelope) -> None:
        body: str = envelope["body"]
        self._digest = chain(self._digest, body)
        self._deliver(rank, json.loads(body))
        self.send(rank, {"kind": "acknowledge", "digest": self._digest})

    def _acknowledged(self, rank: int, envelope: Envelope) -> None:
        with self._changed:
            self._digests[rank] = envelope["digest"]
            self._changed.notify_all()

    def _pinged(self, rank: int, _: Envelope) -> None:
        self.send(rank, {"kind": "pong", "at": time.perf_counter()})

    def _arrived(self, _rank: int, _envelope: Envelope) -> None:
        with self._changed:
            self._present += 1
            self._changed.notify_all()

    def _deliver(self, rank: int, message: Message) -> None:
        with self._changed:
            self._inbox.append((rank, message))
            self._changed.notify_all()

    def _check(self) -> None:
        if self._problem is not None:
            raise self._problem

    def _wait_for(self, done: Callable[[], bool]) -> None:
        """With the lock held: until it holds; raises the problem if there is one."""
        self._changed.wait_for(lambda: done() or self._problem is not None)
        self._check()


def chain(digest: str, body: str) -> str:
    """The hash of a message and all before it."""
    return hashlib.sha256(digest.encode() + body.encode()).hexdigest()
