"""How long a run has trained in this process, and on how much."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Clock:
    """Seconds of training, and real tokens of the samples trained on, in this process."""

    seconds: float = 0.0
    tokens: dict[str, int] = field(default_factory=dict)

    def count(self, name: str, tokens: int) -> None:
        """A job has trained on so many more."""
        self.tokens[name] = self.tokens.get(name, 0) + tokens

    def rate(self, name: str) -> float:
        """Tokens per second of one job."""
        return self.tokens.get(name, 0) / self.seconds if self.seconds else 0.0

    @property
    def total_rate(self) -> float:
        """Tokens per second of all jobs."""
        return sum(self.tokens.values()) / self.seconds if self.seconds else 0.0
