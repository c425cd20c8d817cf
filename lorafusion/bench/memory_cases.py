"""What the memory benchmark trains: three bases that differ, and jobs that fill microbatches."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lorafusion.jobs.schema import RunSpec

__all__ = ["BASES", "CAPACITIES", "MemoryBase", "WORDS", "make_base", "make_spec"]

CAPACITIES = (512, 1024, 2048, 4096)
RANKS = (8, 16, 32)
STEPS = 2
# Tokens of a sample at most: a microbatch of 512 holds some of them.
_LONGEST = 256
WORDS = (
    "the of and to in is was for on that with as it by at from his an were are which this".split()
)


@dataclass(frozen=True, slots=True)
class MemoryBase:
    """A base.

    Attributes:
        name: What a table calls it.
        family: As ``config.json`` has it; empty: the folder of a model that is there.
        config: Sizes of a model with random weights.
    """

    name: str
    family: str
    config: Mapping[str, object]


BASES = (
    MemoryBase("SmolLM2-135M", "", {}),
    MemoryBase(
        "gpt2-124M",
        "gpt2",
        {"n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257},
    ),
    MemoryBase(
        "qwen3-115M",
        "qwen3",
        {
            "hidden_size": 512,
            "intermediate_size": 1536,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
    ),
)
"""A Llama with weights; a GPT-2: two linears in the MLP, learned positions; a large vocabulary."""


def make_base(base: MemoryBase, folder: Path, given: Path) -> Path:
    """The folder of a base, made where it is one of random weights.

    Args:
        base: Which.
        folder: Where to make it.
        given: The model that is there; its tokenizer serves for all, none of whose vocabularies is
            smaller.
    """
    if not base.family:
        return given
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(base.family, **base.config)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(given / name, folder / name)
    return folder


def make_spec(base: Path, capacity: int, folder: Path) -> RunSpec:
    """Three jobs of other ranks and dropouts; a step of all together fills a microbatch.

    Of the first job every token is trained, of the others the completions.
    """
    rng = random.Random(capacity)
    jobs: list[dict[str, object]] = []
    for index, rank in enumerate(RANKS):
        batch = max(1, round(1.1 * capacity / len(RANKS) / (0.62 * _LONGEST)))
        path = folder / f"{index}.jsonl"
        rows = [_row(rng, whole=index == 0) for _ in range(batch * STEPS)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        jobs.append(
            {
                "name": f"rank-{rank}",
                "dataset": {"path": str(path)},
                "adapter": {"r": rank, "lora_dropout": 0.05 * index},
                "global_batch_size": batch,
                "max_seq_len": _LONGEST,
                "max_steps": STEPS,
            }
        )
    run = {"base_model": str(base), "capacity": capacity, "recompute": False, "jobs": jobs}
    return RunSpec.model_validate_json(json.dumps(run))


def _row(rng: random.Random, *, whole: bool) -> dict[str, str]:
    words = rng.choices(WORDS, k=rng.choice((60, 120, 200, 300)))
    if whole:
        return {"text": " ".join(words)}
    cut = 2 * len(words) // 3
    return {"prompt": " ".join(words[:cut]), "completion": " " + " ".join(words[cut:])}
