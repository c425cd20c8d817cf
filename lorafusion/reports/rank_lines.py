"""Of a rank's trace, what is beside its spans: how many ranks there were, and its memory."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

__all__ = ["KINDS", "MemorySample", "RankLines", "read_rank_lines"]

KINDS = ("runtime", "base", "adapters", "gradients", "optimizer", "activations")
"""What memory is full of, in the order in which it is drawn, from below."""

_HEADER, _MEMORY, _OFFSET = (
    f'{{"kind":"{kind}"'.encode() for kind in ("session", "memory", "offset")
)


@dataclass(frozen=True, slots=True)
class MemorySample:
    """Bytes of each of :data:`KINDS` at one moment, which add up to what the process held."""

    at_s: float
    kinds: tuple[int, ...]

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.kinds)

    def moved(self, seconds: float) -> MemorySample:
        """The same on another clock."""
        return replace(self, at_s=self.at_s + seconds)

    @classmethod
    def of(cls, line: dict[str, Any]) -> MemorySample:
        """Of a line of the trace.

        A CPU maps the base's files: where not all of it was touched, what is resident is less than
        the tensors' bytes. Then the base counts as what is left of the total.
        """
        total = int(line["total"])
        runtime, base, *own = (int(line[kind]) for kind in KINDS[:-1])
        runtime = min(runtime, total)
        base = max(0, min(base, total - runtime - sum(own)))
        left = max(0, total - runtime - base - sum(own))
        return cls(float(line["at"]), (runtime, base, *own, left))


@dataclass(frozen=True, slots=True)
class RankLines:
    """One rank's last session.

    Attributes:
        stages: Of the run; 1 where no header says it.
        memory: On rank 0's clock.
    """

    stages: int
    memory: tuple[MemorySample, ...]


def read_rank_lines(path: Path) -> RankLines:
    """Read a file of :mod:`lorafusion.training.trace`; a line that is no JSON is passed over.

    The session's header, offsets and samples are told by how a line begins: a trace is mostly
    spans, which are not parsed here.
    """
    stages, offset = 1, 0.0
    found: list[MemorySample] = []
    if not path.exists():
        return RankLines(stages, ())
    with path.open("rb") as file:
        for text in file:
            if not text.startswith((_HEADER, _MEMORY, _OFFSET)):
                continue
            try:
                line: dict[str, Any] = json.loads(text)
                if text.startswith(_HEADER):
                    stages, offset, found = int(line.get("stages", 1)), 0.0, []
                elif text.startswith(_OFFSET):
                    offset = float(line["offset_s"])
                else:
                    found.append(MemorySample.of(line))
            except (ValueError, KeyError, TypeError):
                continue
    return RankLines(stages, tuple(sample.moved(offset) for sample in found))
