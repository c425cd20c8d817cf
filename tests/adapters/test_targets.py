from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

from lorafusion.adapters.targets import match_targets
from lorafusion.errors import AdapterError
from lorafusion.module_names import module_names
from tests.models.families import FAMILIES

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
    assert list(found) == peft_selects(model, targets)
    assert found


def peft_selects(model: nn.Module, targets: str | tuple[str, ...]) -> list[str]:
    """Names of the modules on which PEFT puts LoRA. It changes ``model``."""
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=targets if isinstance(targets, str) else list(targets)
    )
    return [
        name.removeprefix("base_model.model.")
        for name, module in peft.get_peft_model(model, config).named_modules()
        if isinstance(module, peft.tuners.lora.Linear)
    ]


@pytest.mark.parametrize("how", ["all-linear", "suffixes", "regex"])
@pytest.mark.parametrize("name", FAMILIES)
def test_selects_what_peft_selects_in_every_family(name: str, how: str) -> None:
    family = FAMILIES[name]
    targets = {"all-linear": how, "suffixes": family.suffixes, "regex": family.regex}[how]
    model = getattr(transformers, family.architecture)(family.config())
    names = module_names(model)
    found = match_targets(names, targets)
    weights = [model.get_submodule(linear).weight.shape for linear in found]
    assert list(found) == peft_selects(model, targets)
    assert found
    assert (how == "all-linear") is (found == names.linears)
    assert names.head == "lm_head"
    assert names.head not in names.linears
    shapes = dict(zip(names.linears, names.shapes, strict=True))
    transposed = name == "gpt2"
    assert [shapes[linear] for linear in found] == [
        tuple(shape)[::-1] if transposed else tuple(shape) for shape in weights
    ]


def test_a_head_of_another_name_is_left_out_too() -> None:
    """Found by what it is, not by what it is called."""

    class Renamed(transformers.LlamaForCausalLM):
        def get_output_embeddings(self) -> nn.Module:
            return self.embed_out

    small = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "vocab_size": 16}
    model = Renamed(transformers.LlamaConfig(num_hidden_layers=1, **small))
    model.embed_out = model.lm_head
    del model.lm_head
    names = module_names(model)
    assert names.head == "embed_out"
    assert not any("embed_out" in name for name in names.linears)
    assert list(match_targets(names, "all-linear")) == peft_selects(model, "all-linear")


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
