"""Jobs of simulated runs: lengths and labelled tokens as real datasets have them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from lorafusion.bench.demo_lengths import DEMO_LENGTHS
from lorafusion.planner.case import Case, CaseJob
from lorafusion.planner.queue import Batch, JobQueue

__all__ = ["DEMO", "LONG", "MIXES", "SUMMARIES", "Mix", "MixJob", "make_case", "make_queues"]

# Articles and summaries, log-normal: median and sigma of the article, then of the summary, in
# tokens. About what XSum, CNN/DailyMail and WikiSum have: 430, 780 and 1,330 words with 23, 56 and
# 101 words on average, at 1.25 tokens a word.
_TEXTS = {
    "xsum": (460, 0.55, 28, 0.3),
    "cnn_dailymail": (880, 0.45, 70, 0.35),
    "wikisum": (1500, 0.45, 120, 0.35),
    # Whole reports and short notes: so unequal that attention's share of the time is too.
    "reports": (6000, 0.5, 300, 0.4),
    "notes": (500, 0.7, 100, 0.5),
}
_SHORTEST = 4


@dataclass(frozen=True, slots=True)
class MixJob:
    """One job.

    Attributes:
        sources: Datasets that its samples are drawn from, each as often.
        batch: Samples of a step when there are four stages; with more stages as many times more,
            so that the other jobs' microbatches can fill the wait for a step.
        rank: Of its adapter.
    """

    sources: tuple[str, ...]
    batch: int
    rank: int


@dataclass(frozen=True, slots=True)
class Mix:
    """Jobs that are trained together.

    Attributes:
        name: What they are.
        jobs: Each gets about as many tokens as the others.
        capacity_tokens: Of a microbatch.
        longest: Samples are cut to so many tokens.
    """

    name: str
    jobs: tuple[MixJob, ...]
    capacity_tokens: int
    longest: int = 8192


DEMO = Mix(
    "the demo's datasets",
    (
        MixJob(("sarcasm",), 192, 8),
        MixJob(("crepe",), 80, 16),
        MixJob(("alpaca",), 48, 32),
        MixJob(("logiqa",), 28, 16),
    ),
    capacity_tokens=4096,
)
SUMMARIES = Mix(
    "summaries",
    (
        MixJob(("xsum",), 40, 8),
        MixJob(("cnn_dailymail",), 20, 16),
        MixJob(("wikisum",), 12, 32),
        MixJob(("xsum", "cnn_dailymail", "wikisum"), 20, 16),
    ),
    capacity_tokens=8192,
    longest=6144,
)
LONG = Mix(
    "reports and notes",
    (
        MixJob(("reports",), 8, 16),
        MixJob(("notes",), 80, 16),
        MixJob(("reports", "notes"), 16, 16),
        MixJob(("notes",), 80, 16),
    )
    # With four jobs some places have to stay less full for want of a job that may stand there, and
    # the spread shows that too.
    * 2,
    capacity_tokens=24576,
    longest=16384,
)
MIXES = (DEMO, SUMMARIES)


def make_queues(mix: Mix, *, stages: int, places: int) -> tuple[JobQueue, ...]:
    """Jobs that fill about so many places together; the same each time."""
    rng = random.Random(f"{mix.name} {stages} {places}")
    tokens = places * mix.capacity_tokens / len(mix.jobs)
    return tuple(
        JobQueue(
            f"{index}-{'+'.join(job.sources)}",
            _batches(mix, job, max(1, job.batch * stages // 4), tokens, rng),
            rank=job.rank,
        )
        for index, job in enumerate(mix.jobs)
    )


def make_case(mix: Mix, *, stages: int, places: int) -> Case:
    """The same as a planner case."""
    jobs = (
        CaseJob(
            queue.name,
            len(queue.batches[0].lengths),
            tuple(length for batch in queue.batches for length in batch.lengths),
        )
        for queue in make_queues(mix, stages=stages, places=places)
    )
    return Case(f"{mix.name}, {stages} stages", stages, mix.capacity_tokens, tuple(jobs))


def _batches(
    mix: Mix, job: MixJob, batch: int, tokens: float, rng: random.Random
) -> tuple[Batch, ...]:
    batches: list[Batch] = []
    left = tokens
    while left > 0:
        drawn = [_sample(rng, rng.choice(job.sources), mix.longest) for _ in range(batch)]
        lengths, labelled = (tuple(column) for column in zip(*drawn, strict=True))
        first = batch * len(batches)
        samples = tuple(range(first, first + batch))
        batches.append(Batch(len(batches) + 1, samples, lengths, labelled))
        left -= sum(lengths)
    return tuple(batches)


def _sample(rng: random.Random, source: str, longest: int) -> tuple[int, int]:
    """Tokens of a sample, and those of them that have a target."""
    if source in DEMO_LENGTHS:
        pairs = DEMO_LENGTHS[source].split()
        tokens, _, labelled = pairs[int(rng.random() * len(pairs))].partition("/")
        return int(tokens), int(labelled)
    median, sigma, summary, spread = _TEXTS[source]
    rows = max(_SHORTEST, round(summary * rng.lognormvariate(0, spread)))
    tokens = max(_SHORTEST, round(median * rng.lognormvariate(0, sigma)))
    return min(longest, tokens + rows), min(rows, longest // 2)
