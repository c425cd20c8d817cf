"""Trains jobs on a family's tiny model three ways: together, alone, and with PEFT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lorafusion.jobs.schema import JobSpec
from tests.models.families import Family
from tests.training import runs
from tests.training.peft_loop import train_with_peft

STEPS = 4


@dataclass(frozen=True)
class Measured:
    """The worst relative differences in float64, of losses and of the change of the weights."""

    peft: float
    alone: float
    folder: Path
    """The run of all jobs together."""


def jobs_of(family: Family, folder: Path) -> list[dict[str, Any]]:
    """Three jobs with other ranks, targets and data; the last one drops out."""
    adapters: list[dict[str, Any]] = [
        {"r": 4, "target_modules": "all-linear"},
        {"r": 3, "target_modules": list(family.suffixes)},
        {"r": 2, "target_modules": family.regex, "lora_dropout": 0.2},
    ]
    names = ("all", "suffixes", "dropout")
    return [
        {
            "name": name,
            "dataset": {
                "path": runs.write_rows(
                    folder / f"{name}.jsonl", rows=8, longest=10 + 4 * seed, seed=seed
                )
            },
            "adapter": adapter,
            "learning_rate": 3e-3,
            "global_batch_size": 2 + seed % 2,
            "max_steps": STEPS,
            "seed": seed,
        }
        for seed, (name, adapter) in enumerate(zip(names, adapters, strict=True))
    ]


def measure(family: Family, base: Path, folder: Path) -> Measured:
    """Train, and compare each job with itself alone, those without dropout with PEFT."""
    jobs = jobs_of(family, folder)
    together = folder / "together"
    runs.run(together, base, jobs, dtype="float64", capacity=120)
    peft = alone = 0.0
    for job in jobs:
        start = runs.initial(base, job, "float64")
        change = runs.change(runs.state(together / job["name"]), start)
        losses = runs.losses(together / job["name"])
        if not job["adapter"].get("lora_dropout"):
            spec = JobSpec.model_validate(job)
            expected, _, final = train_with_peft(base, spec, start, torch.float64)
            by_step = {("train", step): loss for step, loss in enumerate(expected, 1)}
            assert losses.keys() == by_step.keys()
            assert len(by_step) == STEPS
            peft = max(
                peft,
                runs.worst_difference(change, runs.change(final, start)),
                runs.loss_difference(losses, by_step),
            )
        if job["name"] != "suffixes":
            runs.run(folder / "alone", base, [job], dtype="float64", capacity=60)
            own = folder / "alone" / job["name"]
            alone = max(
                alone,
                runs.worst_difference(change, runs.change(runs.state(own), start)),
                runs.loss_difference(losses, runs.losses(own)),
            )
    return Measured(peft, alone, together)


def exact_softmax(patch: pytest.MonkeyPatch) -> None:
    """Let transformers' eager attention, which softcaps need, stay in float64 for float64 scores.

    It asks for a softmax in float32 whatever the model's dtype is, which costs nine digits.
    """
    softmax = F.softmax

    def exact(scores: torch.Tensor, *args: Any, dtype: Any = None, **kwargs: Any) -> torch.Tensor:
        kept = scores.dtype if scores.dtype == torch.float64 else dtype
        return softmax(scores, *args, dtype=kept, **kwargs)

    patch.setattr(F, "softmax", exact)
