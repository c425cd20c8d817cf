"""What a stage has computed of a place, between its forward and its backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from lorafusion.planner.plan import Place
from lorafusion.training.shard import JobShard


@dataclass(eq=False)
class Piece:
    """Rows of a place that ran as one graph.

    Attributes:
        part: The samples.
        rows: Where they stand in the place.
        shards: Of their jobs, in the order of the segments; empty where a job was given up.
        inputs: What the stage before sent, a leaf; None on the first stage.
        output: [rows, D]; on the last stage the weighted sum of the losses. None: no graph.
        losses: Sum of cross-entropies of each sample, float64, on the last stage.
        again: Whether the graph was let go, and the forward is run again for the backward.
    """

    part: Place
    rows: slice
    shards: Sequence[JobShard]
    inputs: torch.Tensor | None = None
    output: torch.Tensor | None = None
    losses: torch.Tensor | None = None
    again: bool = False

    def let_go(self) -> None:
        """Hold no memory until the backward, which then runs the forward again."""
        if self.output is not None:
            self.again = True
            self.end()

    def end(self) -> None:
        """The backward is through with the graph."""
        self.output = self.inputs = None


@dataclass(eq=False)
class Work:
    """A place between its forward and its backward.

    Attributes:
        place: It.
        hidden_TD: What the stage before sent; None on the first.
        pieces: In the order of their rows.
        tight: Whether there is no memory for the graphs of all pieces at once.
    """

    place: Place
    hidden_TD: torch.Tensor | None
    pieces: list[Piece] = field(default_factory=list[Piece])
    tight: bool = False

    @property
    def losses(self) -> list[torch.Tensor]:
        """Of every sample in order, on the last stage."""
        return [piece.losses for piece in self.pieces if piece.losses is not None]

    def tokens_beside(self, one: Piece | None) -> int:
        """Tokens whose graphs are held, but for those of ``one``."""
        held = [piece for piece in self.pieces if piece.output is not None and piece is not one]
        return sum(piece.part.tokens for piece in held)


def rows_of(parts: Sequence[Place], start: int = 0) -> list[tuple[Place, slice]]:
    """Each part with its rows, one behind the other."""
    found: list[tuple[Place, slice]] = []
    for part in parts:
        found.append((part, slice(start, start + part.tokens)))
        start += part.tokens
    return found
