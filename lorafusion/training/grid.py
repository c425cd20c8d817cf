"""The ranks of a run as a grid: pipelines of stages, side by side."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """Pipelines of stages, a rank each. The ranks of a pipeline follow one another."""

    stages: int = 1
    replicas: int = 1

    @property
    def ranks(self) -> int:
        """How many there are."""
        return self.stages * self.replicas

    def rank(self, stage: int, replica: int) -> int:
        """The rank that holds a stage of a replica."""
        return replica * self.stages + stage

    def stage(self, rank: int) -> int:
        """Which one a rank holds."""
        return rank % self.stages

    def replica(self, rank: int) -> int:
        """Which one a rank is in."""
        return rank // self.stages

    def place(self, rank: int) -> str:
        """Such as ``stage 1``, and ``stage 1 of replica 2`` where there are several."""
        of = f" of replica {self.replica(rank)}" if self.replicas > 1 else ""
        return f"stage {self.stage(rank)}{of}"

    def name(self, rank: int) -> str:
        """As messages call a rank, such as ``rank 1 (stage 1)``."""
        return f"rank {rank} ({self.place(rank)})"
