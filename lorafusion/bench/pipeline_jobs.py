"""Made-up jobs on a made-up base: a random Llama, and tokens drawn at random."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorafusion.data.dataset import Sample, build_dataset
from lorafusion.data.order import BatchOrder
from lorafusion.jobs.schema import JobSpec
from lorafusion.training.data import JobData

VOCABULARY = 2048
RANK = 16


@dataclass(frozen=True)
class JobsStudy:
    """Jobs whose global batch is two microbatches, on a random Llama.

    Attributes:
        rounds: Turns of each way that count; one more comes before them.
        steps: Of each job in a turn.
        jobs: How many.
        batch: Samples of a step, of seven eighths of ``longest`` to ``longest`` rows, half of them
            labelled; half a batch fills a microbatch.
        longest: Rows of the longest sample.
        hidden: Columns of the hidden state.
        layers: Of the base.
        stages: Processes.
    """

    rounds: int = 5
    steps: int = 2
    jobs: int = 6
    batch: int = 8
    longest: int = 96
    hidden: int = 128
    layers: int = 8
    stages: int = 2

    @property
    def capacity(self) -> int:
        """Most rows of a microbatch."""
        return self.batch // 2 * self.longest


def make_base(study: JobsStudy, folder: Path) -> Mapping[str, Any]:
    """A random Llama; returns its config."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=study.hidden,
            intermediate_size=study.hidden * 11 // 4,
            num_hidden_layers=study.layers,
            num_attention_heads=max(1, study.hidden // 64),
            num_key_value_heads=max(1, study.hidden // 64),
            max_position_embeddings=2048,
            tie_word_embeddings=False,
        )
    )
    model.save_pretrained(folder)
    return model.config.to_dict()


def make_spec(study: JobsStudy, folder: Path, job: int) -> JobSpec:
    """The settings of one job; each has a seed of its own."""
    return JobSpec.model_validate(
        {
            "name": f"job{job}",
            "dataset": {"path": str(folder / "made-up.jsonl")},
            "adapter": {"r": RANK, "lora_alpha": 2 * RANK, "lora_dropout": 0.05},
            "global_batch_size": study.batch,
            # One more than are done: no checkpoint is due.
            "max_steps": study.steps * (study.rounds + 1) + 1,
            "seed": job,
        }
    )


def make_data(study: JobsStudy, spec: JobSpec) -> JobData:
    """Tokens drawn at random; rows are one fewer than tokens."""
    rng = random.Random(spec.seed)
    steps = spec.max_steps or 1

    def sample() -> Sample:
        tokens = rng.randint(study.longest * 7 // 8, study.longest) + 1
        ids = np.array([rng.randrange(VOCABULARY) for _ in range(tokens)], np.int32)
        return Sample(ids, np.arange(tokens) >= tokens // 2)

    rows = study.batch * steps
    dataset = build_dataset(
        (sample() for _ in range(rows)), path="made-up", max_seq_len=study.longest + 1
    )
    order = BatchOrder(np.arange(rows), study.batch, seed=spec.seed, max_steps=steps)
    return JobData(dataset, dataset, (), order)
