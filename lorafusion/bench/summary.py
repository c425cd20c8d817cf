"""From times of turns to medians, ratios and differences of losses: plain arithmetic."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lorafusion.bench.settings import DETERMINISTIC, LIMIT, NO_BASELINES, OURS
from lorafusion.bench.turn import Turn


@dataclass(frozen=True)
class Spread:
    """Median and range of a figure over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of at least one value."""
        found = list(values)
        return cls(statistics.median(found), min(found), max(found))


@dataclass(frozen=True)
class WaySummary:
    """One way at one dropout.

    Attributes:
        way: Its name.
        tokens_per_s: Real tokens a second of training.
        ratio: Ours over this way's, round by round; None for our own and the limit.
        of_limit: This way's over the limit's, round by round; None for the limit, or without it.
        peak_rss_mb: Most memory in any round.
    """

    way: str
    tokens_per_s: Spread
    ratio: Spread | None
    of_limit: Spread | None
    peak_rss_mb: float | None


@dataclass(frozen=True)
class LossSummary:
    """One job's training loss one way, against ours.

    Attributes:
        job: Its name.
        way: Not ours.
        ours: Mean over steps, in nats per trained token.
        theirs: The same.
        worst_step: Greatest relative difference of a step; None where the batches differ.
    """

    job: str
    way: str
    ours: float
    theirs: float
    worst_step: float | None


@dataclass(frozen=True)
class Comparison:
    """What was found at one dropout.

    ``strongest`` and ``weakest``: the baselines, by ratio; None where there is none.
    """

    dropout: float
    ways: tuple[WaySummary, ...]
    losses: tuple[LossSummary, ...]
    strongest: str | None
    weakest: str | None

    def ratio(self, way: str) -> Spread:
        """Ours over ``way``'s."""
        found = next(summary.ratio for summary in self.ways if summary.way == way)
        assert found is not None
        return found

    @property
    def share(self) -> Spread | None:
        """Ours over the limit's."""
        return next(summary.of_limit for summary in self.ways if summary.way == OURS)


# Ways whose batches are ours, and those whose dropout masks are too.
SAME_BATCHES = frozenset({"peft-padded", DETERMINISTIC})
SAME_MASKS = frozenset({DETERMINISTIC})


def compare(turns: Sequence[Turn]) -> tuple[Comparison, ...]:
    """Compare the ways, a dropout at a time; rounds that are not whole are left out."""
    found: list[Comparison] = []
    ways = tuple(dict.fromkeys(turn.way for turn in turns))
    for dropout in dict.fromkeys(turn.dropout for turn in turns):
        rounds = _whole_rounds(turns, dropout, ways)
        if rounds and len(ways) > 1:
            found.append(_compare(dropout, ways, rounds))
    return tuple(found)


def paired_ratio(rounds: Sequence[Mapping[str, Turn]], way: str, over: str) -> Spread:
    """``way``'s tokens per second over ``over``'s of the same round."""
    return Spread.of(turns[way].tokens_per_s / turns[over].tokens_per_s for turns in rounds)


def _whole_rounds(
    turns: Sequence[Turn], dropout: float, ways: Sequence[str]
) -> list[dict[str, Turn]]:
    rounds: defaultdict[int, dict[str, Turn]] = defaultdict(dict)
    for turn in turns:
        if turn.dropout == dropout:
            rounds[turn.round][turn.way] = turn
    return [by_way for _, by_way in sorted(rounds.items()) if by_way.keys() == set(ways)]


def _compare(
    dropout: float, ways: Sequence[str], rounds: Sequence[Mapping[str, Turn]]
) -> Comparison:
    others = [way for way in ways if way not in (OURS, LIMIT)]
    ratios = {way: paired_ratio(rounds, OURS, way) for way in others}
    baselines = [way for way in others if way not in NO_BASELINES]
    by_ratio = sorted(baselines, key=lambda way: ratios[way].median)
    limited = [way for way in ways if way != LIMIT and LIMIT in ways]
    shares = {way: paired_ratio(rounds, way, LIMIT) for way in limited}
    summaries = tuple(
        WaySummary(
            way,
            Spread.of(turns[way].tokens_per_s for turns in rounds),
            ratios.get(way),
            shares.get(way),
            max((turns[way].peak_rss_mb or 0.0 for turns in rounds), default=0.0) or None,
        )
        for way in ways
    )
    losses = tuple(loss for way in others for loss in _losses(way, rounds[0], dropout))
    strongest, weakest = (by_ratio[0], by_ratio[-1]) if by_ratio else (None, None)
    return Comparison(dropout, summaries, losses, strongest=strongest, weakest=weakest)


def _losses(way: str, turns: Mapping[str, Turn], dropout: float) -> list[LossSummary]:
    ours, theirs = _by_job(turns[OURS]), _by_job(turns[way])
    # With dropout the masks are others; sorted by length the batches are.
    comparable = way in (SAME_BATCHES if dropout == 0 else SAME_MASKS)
    return [
        LossSummary(
            job=job,
            way=way,
            ours=statistics.fmean(ours[job].values()),
            theirs=statistics.fmean(theirs[job].values()),
            worst_step=_worst(ours[job], theirs[job]) if comparable else None,
        )
        for job in ours
    ]


def _by_job(turn: Turn) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for step in sorted(turn.steps, key=lambda step: step.job):
        found.setdefault(step.job, {})[step.step] = step.loss
    return found


def _worst(ours: Mapping[int, float], theirs: Mapping[int, float]) -> float:
    return max(abs(ours[step] - loss) / abs(loss) for step, loss in theirs.items())
