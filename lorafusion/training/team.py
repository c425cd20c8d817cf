"""Who trains together: the ranks of a run, a stage of a pipeline each, and how they reach another.

Training knows these protocols alone. :mod:`lorafusion.launch` gives links over
``torch.distributed``; a run in one process has a team of one, without any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import torch

from lorafusion.training.grid import Grid

if TYPE_CHECKING:
    from lorafusion.models.stage import Stage
    from lorafusion.training.memory_kinds import MemoryKinds
    from lorafusion.training.stage_times import StageTimes

Message: TypeAlias = Mapping[str, Any]
"""Goes to JSON and back."""

SpanKind = Literal["forward", "backward", "step", "send", "wait"]


class Receipt(Protocol):
    """A message that is on its way."""

    def wait(self) -> torch.Tensor:
        """Its bytes, uint8 [size]; waits until they are here.

        Raises:
            LostRankError: The sender is gone.
        """
        ...


class Link(Protocol):
    """To and from one neighbour. Messages of each direction arrive in the order they were sent."""

    def send(self, message: torch.Tensor) -> None:
        """Send uint8 [size] and return at once. The caller must not write to it any more.

        Raises:
            LostRankError: The neighbour is gone.
        """
        ...

    def receive(self, size: int) -> Receipt:
        """Get ready for the next message, of ``size`` bytes, which may be sent much later."""
        ...


class Peers(Protocol):
    """The ranks that hold the same stage, one of each replica. All call the same, in one order."""

    def total(self, flat: torch.Tensor) -> None:
        """Put into a flat tensor its sum over the replicas, with the same bits on all of them.

        ``x + -0.0`` keeps every bit of x, whatever it is.

        Raises:
            LostRankError: One of them is gone.
        """
        ...

    def begin(self, place: int) -> None:
        """On first stages: rank 0 begins ``place``, and the others return when it has.

        Raises:
            LostRankError: One of them is gone.
        """
        ...


class Post(Protocol):
    """Small messages between rank 0 and the others, beside the data. For one thread."""

    def publish(self, message: Message) -> None:
        """Rank 0 alone: give all others a message; returns when each has confirmed its hash.

        Raises:
            LostRankError: A rank is gone.
        """
        ...

    def report(self, message: Message) -> None:
        """Send rank 0 a message (rank 0: to itself) and return at once."""
        ...

    def poll(self) -> Sequence[tuple[int, Message]]:
        """What has arrived since the last call, with the senders' ranks; does not wait.

        Raises:
            LostRankError: A rank is gone.
        """
        ...

    def wait(self) -> tuple[int, Message]:
        """The next message; waits for it.

        Raises:
            LostRankError: A rank is gone.
        """
        ...


class Recorder(Protocol):
    """Told what a rank is doing."""

    def span(self, kind: SpanKind, place: int, name: str) -> AbstractContextManager[None]:
        """Covers the time that ``kind`` takes at a place of the run.

        Args:
            kind: What is done. ``wait``: for a neighbour, or for rank 0's plan.
            place: Number of the place, counted over the whole run from 0.
            name: What is in it, such as ``a#3+b#7``; for a wait what is waited for.
        """
        ...

    def stepped(self, place: int, job: str, step: int, samples: Sequence[int]) -> None:
        """These samples' gradients are in the step that was just applied."""
        ...

    def look_at(self, stage: Stage, memory: Callable[[], MemoryKinds]) -> None:
        """The rank's stage is there.

        Args:
            stage: It.
            memory: Says what fills the memory; best asked at the end of a forward, when
                activations are alive.
        """
        ...

    def summary(self) -> StageTimes:
        """What the rank has done with its time so far."""
        ...

    def close(self) -> None:
        """Keep what there is; nothing more is of interest."""
        ...

    @property
    def problem(self) -> str | None:
        """Why not all is kept; None while all is well."""
        ...


class NoPeers:
    """The only replica's."""

    def total(self, flat: torch.Tensor) -> None:
        """It is the sum."""

    def begin(self, place: int) -> None:
        """Nobody waits."""


@dataclass(frozen=True)
class Team:
    """One rank's view of the run.

    Attributes:
        stage: From 0.
        stages: How many.
        device: Where this stage computes.
        post: Messages beside the data.
        recorder: Told what is being done.
        up: To the stage before, None on the first.
        down: To the stage after, None on the last.
        replica: The pipeline that this stage is in, from 0.
        replicas: How many there are.
        peers: The same stage of the other pipelines.
        together: Whether each job is on all of them, or has one of its own.
        gathering: With one stage, a process group of torch over all replicas that gathers tensors
            where they compute; None where nobody needs it.
    """

    stage: int
    stages: int
    device: torch.device
    post: Post
    recorder: Recorder
    up: Link | None = None
    down: Link | None = None
    replica: int = 0
    replicas: int = 1
    peers: Peers = field(default_factory=NoPeers)
    together: bool = True
    gathering: Any = None

    @property
    def grid(self) -> Grid:
        """All ranks."""
        return Grid(self.stages, self.replicas)

    @property
    def rank(self) -> int:
        """This one."""
        return self.grid.rank(self.stage, self.replica)

    @property
    def sharers(self) -> Peers:
        """The ranks that hold the same of each job."""
        return self.peers if self.together else NoPeers()

    @property
    def others(self) -> int:
        """How many ranks there are beside this one."""
        return self.grid.ranks - 1

    @property
    def first(self) -> bool:
        """Whether this rank plans and speaks to the user."""
        return self.rank == 0

    @property
    def last(self) -> bool:
        """Whether this rank computes losses."""
        return self.stage == self.stages - 1
