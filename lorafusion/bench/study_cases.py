"""What the studies train: cases of each, and the ratios between them that are asked for.

Samples are random words, each a token in most vocabularies, so that lengths are what a study says.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from lorafusion.bench.settings import OURS
from lorafusion.jobs.schema import RunSpec

__all__ = ["STUDIES", "Case", "Job", "Ratio", "Size", "Study"]

PADDED, SORTED = "peft-padded", "peft-sorted"
_WORDS = (
    "the of and to in is was for on that with as it by at from his an were are which this".split()
)


# Of a word, in a small vocabulary, and of what a tokenizer adds to a sample.
_MOST_TOKENS, _MARGIN = 3, 16


@dataclass(frozen=True, slots=True)
class Size:
    """How large a study is: ``scale`` multiplies lengths, ``batch`` numbers of samples."""

    scale: float = 1.0
    batch: float = 1.0

    def tokens(self, count: int) -> int:
        """Of a sample."""
        return max(6, round(count * self.scale))

    def samples(self, count: int) -> int:
        """Of a batch."""
        return max(1, round(count * self.batch))


@dataclass(frozen=True, slots=True)
class Job:
    """A job of one step.

    Attributes:
        name: The same in two cases: the same samples, and so the same losses.
        samples: Of its batch.
        tokens: Median of a sample.
        spread: A sample has this share more or fewer tokens, at most.
        trained: Share of a sample that is trained on.
        pool: What its samples are drawn from; empty: its own.
        first: Its first sample there.
    """

    name: str
    samples: int
    tokens: int
    spread: float = 0.2
    trained: float = 0.3
    pool: str = ""
    first: int = 0

    def rows(self) -> Iterator[Mapping[str, str]]:
        """Prompts and completions; those of one length are of equally many tokens, too."""
        for number in range(self.first, self.first + self.samples):
            rng = random.Random(f"{self.pool or self.name} {number}")
            count = round(self.tokens * (1 + self.spread * rng.uniform(-1, 1)))
            words = list(islice(cycle(_WORDS), count))
            cut = max(1, round(count * (1 - self.trained)))
            prompt, completion = words[1:cut], words[cut:]
            rng.shuffle(prompt)
            rng.shuffle(completion)
            yield {"prompt": " ".join([words[0], *prompt]), "completion": _joined(completion)}

    @property
    def longest(self) -> int:
        """Words of a sample, at most."""
        return round(self.tokens * (1 + self.spread))


@dataclass(frozen=True, slots=True)
class Case:
    """Jobs that are trained at once.

    Attributes:
        name: As a table has it.
        jobs: They.
        rank: Of their adapters.
        ways: Who trains them, of ``settings.WAYS``.
        steps: Optimizer steps.
    """

    name: str
    jobs: tuple[Job, ...]
    rank: int = 8
    ways: tuple[str, ...] = (OURS,)
    steps: int = 1

    def spec(self, base: str, folder: Path, dtype: str) -> RunSpec:
        """The run, with its data written into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        jobs: list[dict[str, object]] = []
        for job in self.jobs:
            path = folder / f"{job.name}.jsonl"
            lines = (json.dumps(row) + "\n" for row in job.rows())
            path.write_text("".join(lines), encoding="utf-8")
            jobs.append(
                {
                    "name": job.name,
                    "dataset": {"path": str(path.resolve()), "type": "prompt_completion"},
                    "adapter": {"r": self.rank, "target_modules": "all-linear"},
                    "global_batch_size": job.samples,
                    "learning_rate": 2e-4,
                    "max_seq_len": _MOST_TOKENS * job.longest + _MARGIN,
                    "max_steps": self.steps,
                }
            )
        return RunSpec.model_validate_json(
            json.dumps({"base_model": base, "dtype": dtype, "jobs": jobs})
        )


@dataclass(frozen=True, slots=True)
class Ratio:
    """One case over the mean of others, in the same round.

    Attributes:
        name: As a table has it.
        over: Case and way.
        under: The same, one or more.
        bound: What is asked for; None: nothing.
        memory: Of the peaks of memory, at most ``bound``; else of tokens a second, at least.
    """

    name: str
    over: tuple[str, str]
    under: tuple[tuple[str, str], ...]
    bound: float | None = None
    memory: bool = False


@dataclass(frozen=True, slots=True)
class Study:
    """A question about speed or memory.

    Attributes:
        name: As the command has it.
        about: One sentence.
        cases: They, at a size.
        ratios: What is asked.
        same_loss: Whether all cases hold the same samples, and so the same mean loss at first.
    """

    name: str
    about: str
    cases: Callable[[Size], Sequence[Case]]
    ratios: tuple[Ratio, ...]
    same_loss: bool = False


def _jobs(size: Size) -> list[Case]:
    """Sixty-four samples of one length, over more and more jobs."""
    total, tokens = size.samples(64), size.tokens(116)
    counts = {"2 jobs": 2, "16 jobs": min(16, total), "64 jobs": min(64, total)}

    def job(number: int, of: int) -> Job:
        each = total // of
        return Job(
            f"{number + 1} of {of}".replace(" ", "-"),
            each,
            tokens,
            0.0,
            pool="jobs",
            first=number * each,
        )

    return [
        Case(name, tuple(job(number, count) for number in range(count)), steps=2)
        for name, count in counts.items()
    ]


def _lengths(size: Size) -> list[Case]:
    """Two jobs of each length together, and four of each with their like."""
    short = [Job(f"short-{i}", size.samples(24), size.tokens(39)) for i in range(4)]
    long = [Job(f"long-{i}", size.samples(2), size.tokens(494)) for i in range(4)]
    return [
        Case("39 tokens", tuple(short)),
        Case("494 tokens", tuple(long)),
        Case("both", (*short[:2], *long[:2])),
    ]


def _memory(size: Size) -> list[Case]:
    """One batch of one job, of lengths that differ as instructions do, and one of equal lengths.

    Two steps: the second's losses show the gradients of the first.
    """
    ways = (OURS, PADDED, SORTED)
    unlike = Job("unlike", size.samples(8), size.tokens(190), 0.8)
    alike = Job("alike", size.samples(8), size.tokens(190), 0.0)
    return [Case(job.name, (job,), 16, ways, steps=2) for job in (unlike, alike)]


def _packing(size: Size) -> list[Case]:
    """Two jobs together and one of them alone."""
    kinds = {
        "small batches": [Job(f"small-{i}", size.samples(4), size.tokens(39)) for i in range(2)],
        "full batches": [Job(f"full-{i}", size.samples(16), size.tokens(120)) for i in range(2)],
        "long samples": [Job(f"long-{i}", 1, size.tokens(1900), 0.0) for i in range(2)],
    }
    cases: list[Case] = []
    for kind, jobs in kinds.items():
        cases.append(Case(f"{kind}, two jobs", tuple(jobs)))
        alone = (OURS, SORTED) if kind == "long samples" else (OURS,)
        cases.append(Case(f"{kind}, one of them", (jobs[0],), ways=alone))
    return cases


def _together(kind: str) -> Ratio:
    under = (f"{kind}, one of them", OURS)
    return Ratio(f"{kind}: together over alone", (f"{kind}, two jobs", OURS), (under,))


def _more_jobs(count: int, bound: float) -> Ratio:
    return Ratio(f"{count} over 2 jobs", (f"{count} jobs", OURS), (("2 jobs", OURS),), bound)


def _peak(case: str, way: str, bound: float | None) -> Ratio:
    return Ratio(f"{case}: ours over {way}", (case, OURS), ((case, way),), bound, memory=True)


STUDIES = {
    study.name: study
    for study in (
        Study(
            "jobs",
            "The same samples as batches of 2, 16 and 64 jobs of rank 8, two steps of each. At the "
            "end of a job its checkpoint and adapter are written.",
            _jobs,
            (_more_jobs(16, 0.9), _more_jobs(64, 0.8)),
            same_loss=True,
        ),
        Study(
            "lengths",
            "Jobs of short and of long samples, with their like and together.",
            _lengths,
            (
                Ratio(
                    "both over the mean of each with its like",
                    ("both", OURS),
                    (("39 tokens", OURS), ("494 tokens", OURS)),
                    0.9,
                ),
            ),
        ),
        Study(
            "memory",
            "Most memory of a process that trains one batch of one job, rank 16 on all linears.",
            _memory,
            (
                _peak("unlike", PADDED, 0.7),
                _peak("unlike", SORTED, None),
                _peak("alike", PADDED, 0.7),
                _peak("alike", SORTED, None),
            ),
        ),
        Study(
            "packing",
            "Two jobs in one run, and one of them alone: where its own batches fill microbatches, "
            "company gains nothing.",
            _packing,
            (
                _together("small batches"),
                _together("full batches"),
                _together("long samples"),
                Ratio(
                    "one long sample: ours over peft-sorted",
                    ("long samples, one of them", OURS),
                    (("long samples, one of them", SORTED),),
                ),
            ),
        ),
    )
}


def _joined(words: Sequence[str]) -> str:
    return " " + " ".join(words)
