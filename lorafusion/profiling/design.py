"""Which microbatches are measured: some to fit the cost model to, others to hold it against.

A cost is linear in a few counts (:class:`~lorafusion.planner.cost.Counts`), so the microbatches
differ in tokens, lengths, labelled rows, jobs and ranks independently of one another. Those held
out have lengths and numbers of jobs that none of the others has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorafusion.planner.cost import Counts

__all__ = ["PROBES", "SHARE", "Probe", "Segment", "held_out", "single", "to_fit"]


@dataclass(frozen=True, slots=True)
class Segment:
    """One job's samples in a microbatch.

    Attributes:
        rank: Of the job's adapter.
        lengths: Tokens of each sample, from 1.
        labelled: Tokens of each sample that have a target, from 1 to all.
    """

    rank: int
    lengths: tuple[int, ...]
    labelled: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """A microbatch to measure."""

    segments: tuple[Segment, ...]

    @property
    def counts(self) -> Counts:
        """What its cost depends on."""
        return Counts(
            tokens=sum(sum(part.lengths) for part in self.segments),
            squares=sum(length * length for part in self.segments for length in part.lengths),
            labelled=sum(sum(part.labelled) for part in self.segments),
            segments=len(self.segments),
            token_ranks=sum(sum(part.lengths) * part.rank for part in self.segments),
        )


@dataclass(frozen=True, slots=True)
class _Recipe:
    """In shares: of the most tokens, of the longest length, of the rows; jobs; which rank."""

    tokens: float
    length: float
    labelled: float
    jobs: int
    rank: int


# Rank 0 is the smallest, 1 the middle one, 2 the largest. Most are small: what they cost together
# is what a round takes, 5.1 times the largest.
_FIT = (
    _Recipe(0.05, 0.25, 0.3, 1, 1),
    _Recipe(0.2, 0.25, 0.3, 1, 1),
    _Recipe(0.2, 0.05, 0.3, 2, 2),
    _Recipe(0.35, 1.0, 0.05, 1, 2),
    _Recipe(0.25, 0.25, 0.9, 2, 1),
    _Recipe(0.3, 0.12, 0.3, 12, 1),
    _Recipe(0.3, 0.25, 0.1, 3, 2),
    _Recipe(0.5, 0.5, 0.3, 3, 0),
    _Recipe(1.0, 0.25, 0.2, 2, 1),
    _Recipe(0.1, 0.5, 0.7, 4, 0),
)
_HELD_OUT = (
    _Recipe(0.1, 0.4, 0.5, 1, 2),
    _Recipe(0.15, 0.8, 0.2, 5, 1),
    _Recipe(0.28, 0.17, 0.6, 6, 0),
    _Recipe(0.4, 0.35, 0.4, 7, 1),
    _Recipe(0.3, 0.7, 0.1, 2, 2),
    _Recipe(0.6, 0.07, 0.3, 8, 1),
)
PROBES = len(_FIT) + len(_HELD_OUT)
"""Of a round."""

SHARE = sum(recipe.tokens for recipe in (*_FIT, *_HELD_OUT))
"""Tokens of all of them together, over those of the largest."""


def to_fit(most: int, longest: int, ranks: Sequence[int]) -> tuple[Probe, ...]:
    """The microbatches to fit to.

    Args:
        most: Tokens of the largest.
        longest: Tokens of the longest sample.
        ranks: Of the adapters, any number in any order.
    """
    return tuple(_probe(recipe, most, longest, ranks) for recipe in _FIT)


def held_out(most: int, longest: int, ranks: Sequence[int]) -> tuple[Probe, ...]:
    """The microbatches that the fit does not see; arguments as of :func:`to_fit`."""
    return tuple(_probe(recipe, most, longest, ranks) for recipe in _HELD_OUT)


def single(tokens: int, rank: int) -> Probe:
    """One job with samples of up to 64 tokens, a third of them labelled."""
    return _probe(_Recipe(1.0, 1.0, 0.33, 1, 1), tokens, min(64, tokens), [rank])


def _probe(recipe: _Recipe, most: int, longest: int, ranks: Sequence[int]) -> Probe:
    ordered = sorted(ranks)
    rank = ordered[(len(ordered) - 1) * recipe.rank // 2]
    tokens = max(recipe.jobs * 2, round(most * recipe.tokens))
    length = max(2, min(round(longest * recipe.length), tokens))
    segments: list[Segment] = []
    for job in range(recipe.jobs):
        own = tokens * (job + 1) // recipe.jobs - tokens * job // recipe.jobs
        count = max(1, round(own / length))
        # Around the length, not all alike: shapes that repeat are kinder than a run's are.
        ends = [own * (i + 1) // count for i in range(count)]
        lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        for i in range(0, count - 1, 2):
            shift = lengths[i] // 4
            lengths[i] -= shift
            lengths[i + 1] += shift
        labelled = [max(1, round(recipe.labelled * n)) for n in lengths]
        segments.append(Segment(rank, tuple(lengths), tuple(labelled)))
    return Probe(tuple(segments))
