"""Which adapters vLLM loads, and the folder that is made for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from lorafusion.adapters.peft_format import load_adapter, save_adapter
from lorafusion.adapters.uniform import uniform
from lorafusion.adapters.vllm import (
    FOLDABLE,
    base_architecture,
    check_folder,
    max_lora_rank,
    serve_command,
)
from lorafusion.errors import AdapterError
from tests.adapters.conftest import MakeAdapter

PATTERNS = {
    "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 9},
    "alpha_pattern": {"layers.0.mlp.down_proj": 3, "layers.1.self_attn.q_proj": 5},
}


def failing(folder: Path, architecture: str | None = "LlamaForCausalLM") -> list[str]:
    return [c.name for c in check_folder(folder, architecture) if not c.holds]


def reason(folder: Path, name: str, architecture: str | None = "LlamaForCausalLM") -> str:
    (found,) = [c.reason for c in check_folder(folder, architecture) if c.name == name]
    return found


@pytest.mark.parametrize(
    ("rank", "option"),
    [(1, 1), (2, 8), (8, 8), (9, 16), (16, 16), (200, 256), (257, 320), (512, 512), (513, None)],
)
def test_the_smallest_rank_that_vllm_takes(rank: int, option: int | None) -> None:
    assert max_lora_rank(rank) == option


def test_a_sound_adapter(make_adapter: MakeAdapter) -> None:
    folder = make_adapter(r=12)
    assert failing(folder) == []
    assert "--max-lora-rank 16" in reason(folder, "rank")
    assert reason(folder, "modules") == "down_proj, q_proj"
    assert failing(make_adapter("rs", use_rslora=True)) == []


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"use_dora": True}, ["use_dora", "tensor names"]),
        ({"bias": "all"}, ["bias"]),
        ({"lora_bias": True}, ["bias", "tensor names"]),
        ({"modules_to_save": ["lm_head"]}, ["modules_to_save", "tensor names"]),
        ({"rank_pattern": {"q_proj": 2}}, ["rank_pattern", "shapes"]),
        ({"alpha_pattern": {"q_proj": 2}}, ["alpha_pattern"]),
        ({"init_lora_weights": "pissa"}, ["settings that vLLM ignores"]),
        ({"target_modules": ["embed_tokens"]}, ["tensor names"]),
        ({"target_modules": ["q_proj", "lm_head"]}, ["tensor names", "modules"]),
        ({"trainable_token_indices": [1]}, ["settings that vLLM ignores", "tensor names"]),
    ],
    ids=str,
)
def test_folders_of_peft_that_vllm_refuses_or_misreads(
    settings: dict[str, Any], names: list[str], make_adapter: MakeAdapter
) -> None:
    found = failing(make_adapter(**settings))
    assert set(names) <= set(found) <= {*names, "tensor names"}


def rewrite(folder: Path, drop: str = "", **fields: Any) -> None:
    path = folder / "adapter_config.json"
    found = json.loads(path.read_text()) | fields
    found.pop(drop, None)
    path.write_text(json.dumps(found))


def test_fields_that_are_wrong(make_adapter: MakeAdapter) -> None:
    folder = make_adapter()
    rewrite(folder, r=600)
    assert failing(folder) == ["rank", "shapes"]
    assert "above 512" in reason(folder, "rank")
    rewrite(folder, r="4")
    assert "rank" in failing(folder)
    rewrite(folder, r=4, peft_type="LOHA")
    assert failing(folder) == ["peft_type"]
    rewrite(folder, peft_type="LORA", a_field_of_tomorrow=3)
    assert "a_field_of_tomorrow" in reason(folder, "settings that vLLM ignores")
    rewrite(folder, drop="lora_alpha", a_field_of_tomorrow=None)
    assert failing(folder) == ["r, lora_alpha, target_modules"]
    (folder / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match=r"no adapter_config\.json"):
        check_folder(folder, None)


def test_weights_that_are_wrong(make_adapter: MakeAdapter) -> None:
    folder = make_adapter()
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(iter(tensors))
    save_file({**tensors, key: torch.full_like(tensors[key], torch.nan)}, path)
    assert failing(folder) == ["weights"]
    path.write_bytes(b"x")
    assert failing(folder) == ["weights"]
    path.rename(folder / "adapter_model.bin")
    assert "pickle" in reason(folder, "weights")


def test_fused_names_are_right_only_where_the_base_has_them(make_adapter: MakeAdapter) -> None:
    folder = make_adapter()
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({key.replace("q_proj", "qkv_proj"): value for key, value in tensors.items()}, path)
    assert failing(folder) == ["modules"]
    assert "one by one" in reason(folder, "modules")
    assert failing(folder, "Phi3ForCausalLM") == []
    assert failing(folder, None) == []


def test_bases(make_adapter: MakeAdapter, tiny_base: Path) -> None:
    folder = make_adapter()
    assert failing(folder, "GPT2LMHeadModel") == failing(folder, "GPTNeoXForCausalLM") == ["base"]
    assert "see vLLM's list" in reason(folder, "base", "NewForCausalLM")
    assert base_architecture(str(tiny_base)) == "LlamaForCausalLM"
    assert base_architecture("no/such-model") is None
    assert base_architecture("/no/such/../folder") is None
    assert base_architecture(str(folder)) is None


def test_the_command_can_be_pasted(tmp_path: Path) -> None:
    command = serve_command(tmp_path / "a b", base_model="some/base", rank=9, name="x")
    assert command == (
        f"vllm serve some/base --enable-lora --max-lora-rank 16 --lora-modules 'x={tmp_path}/a b'"
    )


def logits(base: Path, folder: Path, dtype: torch.dtype) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    theirs = peft.PeftModel.from_pretrained(model, folder).to(dtype)
    with torch.no_grad():
        return theirs(input_ids=torch.arange(3, 40).reshape(1, -1)).logits.double()


@pytest.mark.parametrize("rslora", [False, True], ids=["alpha/r", "rslora"])
def test_a_folded_adapter_is_the_same_function(
    rslora: bool, make_adapter: MakeAdapter, tiny_base: Path, tmp_path: Path
) -> None:
    source = make_adapter(**PATTERNS, use_rslora=rslora)
    assert set(failing(source)) == set(FOLDABLE)
    made = uniform(load_adapter(source))
    assert (made.config.r, made.config.lora_alpha, made.config.scale) == (9, 9, 1)
    save_adapter(tmp_path / "out", made, linears=None, card="x\n")
    assert failing(tmp_path / "out") == []
    for dtype, bound in ((torch.float64, 1e-6), (torch.float32, 1e-5)):
        expected, found = (logits(tiny_base, f, dtype) for f in (source, tmp_path / "out"))
        assert (expected - found).abs().max() <= bound * expected.abs().max()
    # What vLLM would make of the source: one scale for all.
    rewrite(source, alpha_pattern={})
    wrong = logits(tiny_base, source, torch.float32)
    assert (wrong - expected).abs().max() > 0.01 * expected.abs().max()


def test_products_of_a_folded_adapter_are_rounded_once(make_adapter: MakeAdapter) -> None:
    loaded = load_adapter(make_adapter(**PATTERNS))
    made = uniform(loaded)
    for name, (a, b) in loaded.modules.items():
        folded_a, folded_b = made.modules[name]
        exact = loaded.config.scale_of(name) * (b.double() @ a.double())
        torch.testing.assert_close(folded_b @ folded_a.double(), exact, rtol=1e-12, atol=1e-12)
        assert folded_a.shape[0] == folded_b.shape[1] == 9


def test_what_is_uniform_already_stays(make_adapter: MakeAdapter) -> None:
    loaded = load_adapter(make_adapter(use_rslora=True))
    assert uniform(loaded) is loaded
