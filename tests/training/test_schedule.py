from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import get_scheduler

from lorafusion.jobs.schema import JobSpec
from lorafusion.training.schedule import learning_rate, warmup_steps

NAMES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def spec(**settings: Any) -> JobSpec:
    return JobSpec.model_validate({"name": "a", "dataset": {"path": "a.jsonl"}, **settings})


@pytest.mark.parametrize("total", [1, 2, 7, 40, 133])
@pytest.mark.parametrize("warmup", [0, 1, 3, 40, 200])
@pytest.mark.parametrize("name", NAMES)
def test_equals_transformers(name: str, warmup: int, total: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=3e-4)
    scheduler = get_scheduler(NAMES[name], optimizer, warmup, total)
    job = spec(lr_scheduler=name, warmup_steps=warmup, learning_rate=3e-4)
    for step in range(1, total + 1):
        expected = optimizer.param_groups[0]["lr"]
        assert learning_rate(job, step, total) == pytest.approx(expected, rel=1e-12, abs=1e-18)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("ratio", "total", "steps"),
    [(0.0, 10, 0), (0.03, 10, 1), (0.1, 20, 2), (0.101, 20, 3), (1, 5, 5)],
)
def test_a_ratio_is_rounded_up(ratio: float, total: int, steps: int) -> None:
    assert warmup_steps(spec(warmup_ratio=ratio), total) == steps


def test_warmup_steps_win_over_the_ratio() -> None:
    assert warmup_steps(spec(warmup_ratio=0.5, warmup_steps=0), 10) == 0
