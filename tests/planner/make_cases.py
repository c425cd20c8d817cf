"""Write the planner cases in ``cases/``. Each has a seed of its own and comes out the same again.

Run from the root of a checkout, after ``lorafusion fetch demo``; about five minutes for all::

    python tests/planner/make_cases.py [NAME...]

Names begin with where the lengths come from: ``real`` are the demo's datasets as SmolLM2's
tokenizer cuts them; ``summaries`` are log-normal, with medians and spreads like those of articles
with their summaries. In ``hard_*`` samples are large and few of them are free at a time,
so that plans stay 5-10% above what is proven. ``lognormal_*``, ``small_batches`` and ``two_jobs``
came with what LoRAFusion's own planner reached on them, and are not written here.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorafusion.files import home, write_text_atomic
from lorafusion.planner.bounds import EFFORT, lower_bound_places, tight_bound
from lorafusion.planner.case import Case, CaseJob
from lorafusion.planner.links import make_links

FOLDER = Path(__file__).parent / "cases"
MEANS = (
    "at least this many places (microbatches plus no-ops): the larger of all tokens over the "
    "capacity, and for any one job its steps one after another, each of the fewest places that "
    "its samples fit into, and at least stages places after the last"
)
TIGHT = (
    "at least this many places: by what has to stand inside of an interval of places and, where "
    "all tokens fill less than 1.2 times the places of the longest job, by a relaxation in which "
    "samples can be divided (CP-SAT within a limit: more might be true)"
)
REAL = {
    "sarcasm": "sarcasm.jsonl",  # headlines: median 47 tokens
    "crepe": "crepe.jsonl",  # short chats: 115
    "alpaca": "alpaca.jsonl",  # instructions: 152
    "logiqa": "logiqa.jsonl",  # puzzles: 343
    "text": "formats/text.jsonl",  # pages of the web: 265, up to 8192
    "chats": "formats/sharegpt.json",  # long chats: 795, up to 8192
}
SUMMARIES = {"xsum": (450, 0.55), "news": (850, 0.5), "howto": (620, 0.75), "papers": (2600, 0.45)}
"""Median and sigma."""


@dataclass(frozen=True)
class Jobs:
    """``count`` jobs of ``samples`` samples each."""

    source: str
    samples: int
    batch: int
    count: int = 1
    longest: int = 4096

    def times(self, count: int) -> Jobs:
        return replace(self, count=count)


@dataclass(frozen=True)
class Recipe:
    """``capacity`` 0: one token above the longest sample."""

    name: str
    stages: int
    capacity: int
    jobs: Sequence[Jobs]


RECIPES = (
    Recipe("real_demo_s4", 4, 1024, [
        Jobs("sarcasm", 384, 16), Jobs("crepe", 144, 8), Jobs("alpaca", 80, 4),
        Jobs("logiqa", 48, 4),
    ]),
    Recipe("real_two_jobs_s1", 1, 2048, [Jobs("alpaca", 400, 16), Jobs("logiqa", 300, 8)]),
    Recipe("real_sweep_of_16_on_alpaca_s4", 4, 4096, [
        Jobs("alpaca", 256, batch, 4) for batch in (4, 8, 16, 32)
    ]),
    Recipe("real_8_jobs_unequal_batches_s8", 8, 2048, [
        *(Jobs("sarcasm", 640, batch) for batch in (16, 64)),
        *(Jobs("crepe", 320, batch) for batch in (8, 32)),
        *(Jobs("alpaca", 240, batch) for batch in (8, 24)),
        *(Jobs("logiqa", 160, batch) for batch in (4, 16)),
    ]),
    Recipe("real_64_jobs_s16", 16, 4096, [
        Jobs("sarcasm", 96, 16, 16), Jobs("crepe", 96, 16, 16), Jobs("alpaca", 96, 16, 16),
        Jobs("logiqa", 96, 16, 16),
    ]),
    Recipe("real_long_texts_beside_headlines_s4", 4, 8192, [
        Jobs("text", 96, 8, 2, 8192), Jobs("chats", 64, 8, 1, 8192), Jobs("sarcasm", 512, 32, 3),
    ]),
    Recipe("real_capacity_just_above_longest_s2", 2, 0, [
        Jobs("logiqa", 120, 8), Jobs("alpaca", 160, 8, 2), Jobs("crepe", 200, 8),
        Jobs("sarcasm", 400, 16, 2),
    ]),
    Recipe("hard_real_capacity_just_above_longest_s2", 2, 0, [
        Jobs("logiqa", 120, 8, 2), Jobs("alpaca", 160, 8), Jobs("crepe", 200, 8),
    ]),
    Recipe("real_partial_last_batches_s4", 4, 2048, [
        Jobs("logiqa", 131, 16), Jobs("logiqa", 75, 8), Jobs("alpaca", 209, 32),
        Jobs("crepe", 157, 12), Jobs("sarcasm", 401, 64),
    ]),
    Recipe("real_one_long_beside_many_short_s8", 8, 2048, [
        Jobs("alpaca", 640, 16), Jobs("sarcasm", 64, 16, 10), Jobs("crepe", 48, 16, 6),
        Jobs("logiqa", 32, 16, 4),
    ]),
    Recipe("real_batch_of_one_s4", 4, 1024, [
        Jobs("logiqa", 60, 1, 2), Jobs("alpaca", 60, 1, 3), Jobs("text", 48, 1, 2, 1024),
    ]),
    Recipe("hard_real_batch_of_one_s4", 4, 1024, [
        Jobs("logiqa", 60, 1, 4), Jobs("alpaca", 60, 1, 4), Jobs("text", 60, 1, 4, 1024),
    ]),
    Recipe("summaries_4_jobs_batch_32_s4", 4, 8192, [
        Jobs(source, 256, 32) for source in ("xsum", "news", "howto", "papers")
    ]),
    Recipe("summaries_2_jobs_s2", 2, 6144, [Jobs("news", 256, 8), Jobs("howto", 256, 16)]),
    Recipe("summaries_6_jobs_balanced_s4", 4, 7168, [
        Jobs("xsum", 128, 8, 2), Jobs("news", 128, 8, 2), Jobs("howto", 128, 8, 2),
    ]),
    Recipe("summaries_8_jobs_balanced_s8", 8, 8192, [
        Jobs("xsum", 128, 8, 4), Jobs("news", 128, 8, 2), Jobs("howto", 128, 8, 2),
    ]),
    Recipe("summaries_huge_batches_s8", 8, 8192, [
        Jobs("xsum", 1024, 256), Jobs("news", 1024, 512), Jobs("howto", 768, 256),
        Jobs("papers", 512, 128),
    ]),
    Recipe("summaries_very_unequal_steps_s4", 4, 6144, [
        Jobs("xsum", 480, 4), Jobs("news", 240, 8), Jobs("howto", 120, 16), Jobs("xsum", 60, 30),
        Jobs("news", 16, 16), Jobs("howto", 360, 6),
    ]),
    Recipe("summaries_batch_of_one_s2", 2, 4096, [
        Jobs("news", 100, 1, 2), Jobs("howto", 90, 1, 2), Jobs("papers", 25, 1),
    ]),
    Recipe("hard_summaries_batch_of_one_s2", 2, 4096, [
        Jobs("news", 100, 1, 3), Jobs("howto", 100, 1, 3), Jobs("papers", 50, 1),
    ]),
    Recipe("summaries_capacity_just_above_longest_s4", 4, 0, [
        Jobs("papers", 96, 8, 2, 3900), Jobs("news", 128, 16, 2, 3900), Jobs("xsum", 160, 8, 2),
    ]),
    Recipe("summaries_64_jobs_unequal_batches_s8", 8, 8192, [
        Jobs(source, 16 * batch // 2, batch, 4)
        for batch in (2, 8, 16, 32) for source in ("xsum", "news", "howto", "papers")
    ]),
    Recipe("summaries_12_jobs_small_batches_s16", 16, 8192, [
        Jobs("xsum", 128, 8, 4), Jobs("news", 128, 8, 4), Jobs("howto", 96, 6, 4),
    ]),
)  # fmt: skip


def main(names: Sequence[str]) -> None:
    real = {name: _tokenised(file) for name, file in REAL.items()}
    for recipe in RECIPES:
        if not names or recipe.name in names:
            write_text_atomic(FOLDER / f"{recipe.name}.json", _text(_case(recipe, real)))


def _case(recipe: Recipe, real: dict[str, list[int]]) -> Case:
    rng = random.Random(recipe.name)
    jobs: list[CaseJob] = []
    for group in recipe.jobs:
        for _ in range(group.count):
            lengths = _lengths(group, real, rng)
            jobs.append(CaseJob(f"{group.source}-{len(jobs)}", group.batch, lengths))
    longest = max(length for job in jobs for length in job.lengths)
    return Case(recipe.name, recipe.stages, recipe.capacity or longest + 1, tuple(jobs))


def _lengths(group: Jobs, real: dict[str, list[int]], rng: random.Random) -> tuple[int, ...]:
    if group.source in real:
        drawn: Iterable[int] = rng.sample(real[group.source], group.samples)
    else:
        median, sigma = SUMMARIES[group.source]
        drawn = (
            max(16, round(median * rng.lognormvariate(0, sigma))) for _ in range(group.samples)
        )
    return tuple(min(length, group.longest) for length in drawn)


def _text(case: Case) -> str:
    queues, limits = case.queues(), case.limits()
    document = json.loads(case.to_json())
    document["lower_bound_places"] = lower_bound_places(queues, limits)
    document["lower_bound_places_means"] = MEANS
    # Where there is that much more load than in any job alone, waits can be hidden behind it.
    chain = max(links.length for links in make_links(queues, limits))
    load = sum(queue.load for queue in queues)
    effort = 0 if load >= 1.2 * chain * limits.capacity else EFFORT
    document["tight_bound_places"] = tight_bound(queues, limits, effort=effort).places
    document["tight_bound_places_means"] = TIGHT
    return json.dumps(document, separators=(",", ":")) + "\n"


def _tokenised(file: str) -> list[int]:
    from lorafusion.data.load import load_dataset
    from lorafusion.data.tokenizer import load_tokenizer
    from lorafusion.jobs.schema import DatasetConfig

    tokenizer = load_tokenizer(str(home() / "models" / "SmolLM2-135M-Instruct"))
    config = DatasetConfig(path=str(home() / "data" / file))
    dataset = load_dataset(config, tokenizer, max_seq_len=8192, cache_dir=None)
    return dataset.lengths.tolist()


if __name__ == "__main__":
    main(sys.argv[1:])
