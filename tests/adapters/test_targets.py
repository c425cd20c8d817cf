from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from lorafusion.adapters.targets import match_targets, module_names
from lorafusion.errors import AdapterError

TABLE: dict[str, str | tuple[str, ...]] = {
    "all-linear": "all-linear",
    "suffixes": ("q_proj", "v_proj"),
    "one suffix": ("down_proj",),
    "full name": ("model.layers.0.mlp.up_proj",),
    "longer suffixes": ("0.self_attn.o_proj", "layers.1.mlp.gate_proj"),
    "overlapping": ("q_proj", "self_attn.q_proj", "model.layers.1.self_attn.q_proj"),
    "regex": r".*\.mlp\..*_proj",
    "regex of one layer": r"model\.layers\.1\..*(q|k|v)_proj",
    "regex with alternatives": r".*q_proj|.*up_proj",
}


@pytest.fixture
def model(tiny_base: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(tiny_base)


@pytest.mark.parametrize("what", TABLE)
def test_selects_what_peft_selects(what: str, model: nn.Module) -> None:
    targets = TABLE[what]
    found = match_targets(module_names(model), targets)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=targets if isinstance(targets, str) else list(targets)
    )
    theirs = peft.get_peft_model(model, config)
    expected = [
        name.removeprefix("base_model.model.")
        for name, module in theirs.named_modules()
        if isinstance(module, peft.tuners.lora.Linear)
    ]
    assert list(found) == expected
    assert expected


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("embed_tokens",), "selects 'model.embed_tokens'"),
        (("lm_head",), "selects 'lm_head'"),
        (("q_proj", "norm"), "selects 'model.norm'"),
        (("self_attn",), "selects 'model.layers.0.self_attn'"),
        (("q_proj", "qkv_proj"), "'qkv_proj' matches no module"),
        (("proj",), "'proj' matches no module"),  # an end of a name, but not after a dot
        ((".*q_proj",), "matches no module"),  # a list holds names, not expressions
        ("q_proj", "matches no module"),  # an expression must match the whole name
        (r".*norm", "selects 'model.layers.0.input_layernorm'"),
        ("(", "no regular expression"),
    ],
)
def test_refusals_name_the_entry_and_what_is_allowed(
    targets: str | tuple[str, ...], message: str, model: nn.Module
) -> None:
    with pytest.raises(AdapterError) as error:
        match_targets(module_names(model), targets)
    assert message in str(error.value)
    assert "allowed: " in str(error.value)


def test_an_untied_head_is_no_target_either(untied: nn.Module) -> None:
    names = module_names(untied)
    assert "lm_head" not in names.linears
    assert "lm_head" not in match_targets(names, "all-linear")
    with pytest.raises(AdapterError, match="lm_head"):
        match_targets(names, r"lm_head|.*q_proj")


@pytest.fixture
def untied(tiny_base: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(
        tiny_base, tie_word_embeddings=False, dtype=torch.float32
    )
