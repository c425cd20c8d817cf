"""``rank_pattern`` and ``alpha_pattern`` mean what they mean in PEFT, read and written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lorafusion.adapters.bank import AdapterBank
from lorafusion.adapters.lora import LoraConfig
from lorafusion.adapters.peft_format import StoredAdapter, load_adapter, save_adapter
from lorafusion.errors import AdapterError

# Ends of names, names after a dot, an anchored full name, regexes, the order of overlapping keys,
# a key that fits only part of a name and so nothing, a choice that needs PEFT's brackets.
PATTERNS: dict[str, dict[str, Any]] = {
    "ends": {"rank_pattern": {"q_proj": 2, "mlp.up_proj": 7}},
    "anchored": {
        "rank_pattern": {"^model.layers.0.self_attn.q_proj": 3, "layers.1.mlp.up_proj": 5},
        "alpha_pattern": {"model.layers.0.mlp.gate_proj": 9},
    },
    "regexes": {
        "rank_pattern": {r"layers\.0\..*": 2, r".*\.o_proj": 6},
        "alpha_pattern": {r".*\.1\..*_proj": 3, "down_proj": 40},
    },
    "first counts": {
        "rank_pattern": {"q_proj": 2, r".*_proj": 5, "v_proj": 9},
        "alpha_pattern": {r"self_attn\..*": 1, "q_proj": 64},
    },
    "parts do not": {"rank_pattern": {"proj": 2, "elf_attn.q_proj": 3, "layers.0": 5}},
    "choice": {"rank_pattern": {"q_proj|v_proj": 1}, "alpha_pattern": {"q_proj|up_proj": 2}},
}


def settings(name: str, *, rslora: bool) -> dict[str, Any]:
    return {"r": 4, "lora_alpha": 6, "use_rslora": rslora, **PATTERNS[name]}


def adapted(model: Any) -> dict[str, Any]:
    return {n: m for n, m in model.base_model.model.named_modules() if hasattr(m, "lora_A")}


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 40).reshape(1, -1)).logits


@pytest.mark.parametrize("rslora", [False, True], ids=["alpha/r", "rslora"])
@pytest.mark.parametrize("name", PATTERNS)
def test_rank_and_scale_of_every_module_are_pefts(name: str, rslora: bool, tiny_base: Path) -> None:
    given = settings(name, rslora=rslora)
    ours = LoraConfig.model_validate(given)
    theirs = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_base),
        peft.LoraConfig(**given, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    bank = AdapterBank(AutoModelForCausalLM.from_pretrained(tiny_base))
    built = bank.add(ours, bank.linears, seed=0).modules
    layers = adapted(theirs)
    assert built.keys() == layers.keys()
    for module, layer in layers.items():
        form = built[module].fused_form()
        assert ours.rank_of(module) == layer.r["default"] == form.A.shape[0] == form.B.shape[1]
        assert ours.scale_of(module) == layer.scaling["default"] == form.scale
    plain = {(4, 6 / (math.sqrt(4) if rslora else 4))}
    found = {(ours.rank_of(module), ours.scale_of(module)) for module in layers}
    assert (found == plain) == (name == "parts do not")


def random_peft(base: Path, given: dict[str, Any]) -> Any:
    config = peft.LoraConfig(
        **given, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()


def from_folder(base: Path, folder: Path) -> Any:
    return peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)


@pytest.mark.parametrize("rslora", [False, True], ids=["alpha/r", "rslora"])
@pytest.mark.parametrize("name", PATTERNS)
def test_peft_reads_our_folder(name: str, rslora: bool, tiny_base: Path, tmp_path: Path) -> None:
    """And still does when it has saved it again, which sorts the patterns."""
    given = settings(name, rslora=rslora)
    theirs = random_peft(tiny_base, given)
    modules = {
        name: (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
        for name, layer in adapted(theirs).items()
    }
    adapter = StoredAdapter(LoraConfig.model_validate(given), str(tiny_base), modules)
    save_adapter(tmp_path / "ours", adapter, linears=[*modules, "lm_head"], card="x\n")
    expected = logits(theirs)
    assert (expected - logits(AutoModelForCausalLM.from_pretrained(tiny_base))).abs().max() > 0.1
    back = from_folder(tiny_base, tmp_path / "ours")
    assert torch.equal(logits(back), expected)
    back.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(from_folder(tiny_base, tmp_path / "again")), expected)
    assert shapes(load_adapter(tmp_path / "again")) == shapes(adapter)


def shapes(adapter: StoredAdapter) -> dict[str, tuple[int, float]]:
    return {
        name: (a.shape[0], adapter.config.scale_of(name))
        for name, (a, _) in sorted(adapter.modules.items(), key=lambda item: item[0])
    }


@pytest.mark.parametrize("name", ["ends", "anchored", "parts do not", "choice"])
def test_we_read_pefts_folder(name: str, tiny_base: Path, tmp_path: Path) -> None:
    theirs = random_peft(tiny_base, settings(name, rslora=True))
    theirs.save_pretrained(tmp_path)
    read = load_adapter(tmp_path)
    layers = adapted(theirs)
    assert read.modules.keys() == layers.keys()
    for module, layer in layers.items():
        assert torch.equal(read.modules[module][0], layer.lora_A["default"].weight)
        assert torch.equal(read.modules[module][1], layer.lora_B["default"].weight)
        assert read.config.scale_of(module) == layer.scaling["default"]


def test_a_folder_that_peft_cannot_load_either(tiny_base: Path, tmp_path: Path) -> None:
    random_peft(tiny_base, settings("first counts", rslora=False)).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        from_folder(tiny_base, tmp_path)
    with pytest.raises(AdapterError, match="PEFT sorts the keys of rank_pattern"):
        load_adapter(tmp_path)


def test_empty_patterns_are_not_written(tmp_path: Path) -> None:
    modules = {"model.layers.0.self_attn.q_proj": (torch.ones(8, 3), torch.ones(3, 8))}
    adapter = StoredAdapter(LoraConfig(), "some/base", modules)
    save_adapter(tmp_path / "a", adapter, linears=["model.layers.0.self_attn.q_proj"], card="")
    fields = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert "rank_pattern" not in fields
    assert "alpha_pattern" not in fields


def test_conv1d_is_written_as_peft_wants_it(tmp_path: Path) -> None:
    modules = {"h.0.attn.c_attn": (torch.ones(8, 3), torch.ones(9, 8))}
    adapter = StoredAdapter(LoraConfig(), "some/base", modules, fan_in_fan_out=True)
    save_adapter(tmp_path / "a", adapter, linears=["h.0.attn.c_attn"], card="")
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["fan_in_fan_out"]
    assert load_adapter(tmp_path / "a").fan_in_fan_out
