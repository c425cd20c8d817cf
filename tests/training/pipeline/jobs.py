"""Random jobs over a base of four layers, and their samples, without files."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

from lorafusion.data.dataset import Sample, build_dataset
from lorafusion.data.order import BatchOrder, split_held_out
from lorafusion.jobs.schema import JobSpec
from lorafusion.training.data import JobData

LAYERS = 4
VOCABULARY = 320
# Tokens of a sample; a place must hold the longest.
LONGEST = 9
TARGETS = (
    ["q_proj", "down_proj"],
    ["v_proj"],
    r"model\.layers\.2\..*_proj",
    r"model\.layers\.0\.mlp\..*_proj",
    r"model\.layers\.3\.mlp\..*_proj",
    r"model\.layers\.[12]\.self_attn\.[qo]_proj",
    r"model\.layers\.[03]\.mlp\.down_proj",
)


def make_job(rng: random.Random, name: str) -> dict[str, Any]:
    """A job's settings; what it trains on depends on its seed alone."""
    return {
        "name": name,
        "dataset": {"path": "none"},
        "seed": rng.randrange(1 << 30),
        "adapter": {
            "r": rng.choice([1, 2, 3, 5]),
            "lora_dropout": rng.choice([0.0, 0.1, 0.4]),
            "target_modules": rng.choice(TARGETS),
        },
        "learning_rate": 1e-2,
        "lr_scheduler": "constant",
        "max_grad_norm": rng.choice([None, 0.01, 1.0, 50.0]),
        "global_batch_size": rng.randint(1, 6),
        "max_steps": rng.randint(1, 5),
        "eval": {"val_size": rng.choice([0, 0, 1, 3]), "every": rng.choice([None, 1, 2])},
    }


def plain_job(rng: random.Random, name: str) -> dict[str, Any]:
    """One with something on every stage, whose every step is clipped, and that is not evaluated."""
    return {
        **make_job(rng, name),
        "adapter": {"r": 2, "lora_dropout": 0.1, "target_modules": ["v_proj"]},
        "max_grad_norm": 0.01,
        "global_batch_size": 6,
        "max_steps": 4,
        "eval": {"val_size": 0},
    }


def make_data(spec: JobSpec) -> JobData:
    """The job's samples: 8 to 20 of random tokens."""
    rng = np.random.default_rng(spec.seed)
    lengths = rng.integers(2, LONGEST + 1, rng.integers(8, 20, endpoint=True))
    samples = [
        Sample(rng.integers(3, VOCABULARY, n).astype(np.int32), rng.random(n) < 0.7)
        for n in lengths
    ]
    for sample in samples:
        sample.trained[-1] = True
    dataset = build_dataset(samples, path="none", max_seq_len=LONGEST)
    rows, held_out = split_held_out(len(dataset), val_size=spec.eval.val_size, seed=spec.seed)
    order = BatchOrder(rows, spec.global_batch_size, seed=spec.seed, max_steps=spec.max_steps)
    return JobData(dataset, dataset, tuple(held_out.tolist()), order)


def write_base(folder: Path) -> None:
    """The base, without a tokenizer."""
    from tests.conftest import make_llama

    make_llama(folder, layers=LAYERS)
