from __future__ import annotations

import math
from pathlib import Path

import peft
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers import AutoModelForCausalLM

from lorafusion.adapters.lora import LoraConfig, LoraModule

NAME = "model.layers.0.mlp.up_proj"


def build(seed: int = 0, name: str = NAME, **settings: object) -> LoraModule:
    weight = torch.zeros(48, 32, dtype=settings.pop("dtype", torch.float32))
    return LoraModule(LoraConfig.model_validate(settings), weight, name=name, seed=seed)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(("r", "alpha"), [(1, 16), (8, 16), (12, 5.5)])
def test_the_scale_is_pefts(r: int, alpha: float, rslora: bool) -> None:
    theirs = peft.tuners.lora.Linear(
        nn.Linear(4, 4),
        "default",
        peft.LoraConfig(r=r, lora_alpha=alpha, use_rslora=rslora),
        r=r,
        lora_alpha=alpha,
        use_rslora=rslora,
    )
    assert LoraConfig(r=r, lora_alpha=alpha, use_rslora=rslora).scale == theirs.scaling["default"]
    form = build(r=r, lora_alpha=alpha, use_rslora=rslora).fused_form()
    assert form.scale == theirs.scaling["default"]


def test_a_begins_in_pefts_range_and_b_at_zero(tiny_base: Path) -> None:
    """Uniform: the same bounds and the same spread as PEFT's own factor of the same shape."""
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    theirs = peft.get_peft_model(model, peft.LoraConfig(r=400, target_modules=["up_proj"]))
    expected = theirs.get_submodule(f"base_model.model.{NAME}").lora_A["default"].weight
    a = build(r=400).lora_A
    bound = 1 / math.sqrt(32)
    assert a.shape == expected.shape == (400, 32)
    for tensor in (a, expected):
        assert tensor.abs().max() <= bound
        assert tensor.abs().max() > 0.995 * bound
        assert abs(float(tensor.detach().mean())) < 4 * bound / math.sqrt(3 * tensor.numel())
        assert float(tensor.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert build().lora_B.abs().max() == 0
    assert build().lora_B.shape == (48, 8)


def test_a_callers_default_dtype_changes_nothing() -> None:
    expected = build(seed=5).lora_A
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(build(seed=5).lora_A, expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_depends_on_seed_and_module_and_on_nothing_else() -> None:
    first = build(seed=5)
    torch.manual_seed(123)
    torch.rand(3)
    before = torch.get_rng_state()
    again = build(seed=5)
    assert torch.equal(first.lora_A, again.lora_A)
    assert torch.equal(before, torch.get_rng_state()), "the global generator was used"
    assert not torch.equal(first.lora_A, build(seed=6).lora_A)
    assert not torch.equal(first.lora_A, build(seed=5, name=NAME.replace("0", "1")).lora_A)
    others = {"lora_alpha": 3, "lora_dropout": 0.4, "use_rslora": True}
    assert torch.equal(first.lora_A, build(seed=5, **others).lora_A)


@pytest.mark.parametrize(
    ("base", "factors"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_precision(base: torch.dtype, factors: torch.dtype) -> None:
    module = build(dtype=base)
    assert {tensor.dtype for tensor in module.parameters().values()} == {factors}
    assert all(tensor.is_leaf and tensor.requires_grad for tensor in module.parameters().values())
    assert torch.equal(module.lora_A.float(), build().lora_A), "another draw for another base"


def test_dropout_is_in_65536ths() -> None:
    assert build(lora_dropout=0.25).fused_form().dropout == 16384
    assert build().fused_form().dropout == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 0},
        {"r": -4},
        {"lora_alpha": 0},
        {"lora_dropout": 1.0},
        {"lora_dropout": -0.1},
        {"modules_to_save": ["lm_head"]},
        {"use_dora": True},
        {"bias": "all"},
    ],
    ids=str,
)
def test_refused_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        LoraConfig.model_validate(settings)
