"""What a stage's memory is full of."""

from __future__ import annotations

import pytest

from lorafusion.planner.cost import Counts
from lorafusion.planner.default_cost import Setup, default_parts
from lorafusion.planner.devices import find_device
from lorafusion.planner.estimate import StageMemory, estimate_memory
from lorafusion.planner.shape import ModelShape
from tests.planner.base_configs import CONFIGS

SHAPE = ModelShape.from_config(CONFIGS["SmolLM2-135M"], "float32")
SETUP = Setup(ranks=(8, 24))
FULL = Counts(2048, 2048 * 300, 900, 3, 2048 * 16)


def estimate(stages: int, device: str = "cpu") -> tuple[StageMemory, ...]:
    profile = find_device(device)
    parts = default_parts(SHAPE, profile, SETUP)
    cut = parts.cut(FULL, stages=stages)
    return estimate_memory(SHAPE, profile, SETUP, parts.model(cut), cut, FULL)


def test_kinds_of_the_whole_model() -> None:
    (found,) = estimate(1)
    width = 3 * (576 + 1536) + 2 * (576 + 576) + 2 * (576 + 192)
    adapters = 30 * width * 32
    assert found.base == 4 * SHAPE.parameters
    assert (found.adapters, found.optimizer, found.gradients) == (
        4 * adapters,
        8 * adapters,
        4 * adapters,
    )
    assert found.total == sum(found.kinds.values())
    assert found.runtime > 0


def test_early_stages_hold_more_microbatches() -> None:
    whole, halves = estimate(1)[0], estimate(2)
    a_layer = whole.activations / 30
    assert halves[0].activations == pytest.approx(2 * 15 * a_layer, rel=0.1)
    assert halves[1].activations == pytest.approx(15 * a_layer, rel=0.1)
    assert sum(stage.adapters for stage in halves) == whole.adapters


def test_a_gpu_s_memory_holds_no_interpreter() -> None:
    assert estimate(1, "h100")[0].runtime == 0
