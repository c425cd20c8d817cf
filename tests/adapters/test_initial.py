"""What a job may set beside ``init_from``, what comes from the folder, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lorafusion.adapters.folder import read_folder
from lorafusion.adapters.initial import note_on_base, overwritten_by, resolve_adapter
from lorafusion.adapters.lora import LoraConfig
from lorafusion.errors import AdapterError
from lorafusion.module_names import ModuleNames, module_names
from tests.adapters.conftest import MakeAdapter

PATTERNS = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 3}}


@pytest.fixture(scope="module")
def names(tiny_base: Path) -> ModuleNames:
    return module_names(AutoModelForCausalLM.from_pretrained(tiny_base))


def config(folder: Path, **settings: Any) -> LoraConfig:
    return LoraConfig.model_validate({"init_from": str(folder), **settings}, strict=True)


def test_the_folder_says_what_the_adapter_is(make_adapter: MakeAdapter, names: ModuleNames) -> None:
    folder = make_adapter(use_rslora=True, **PATTERNS)
    resolved = resolve_adapter(config(folder), names)
    found = resolved.config
    assert (found.r, found.lora_alpha, found.use_rslora) == (4, 6, True)
    assert (found.rank_pattern, found.alpha_pattern) == ({"q_proj": 2}, {"down_proj": 3})
    assert resolved.targets == tuple(
        n for n in names.linears if n.endswith(("q_proj", "down_proj"))
    )
    tensors = resolved.initial_tensors()
    assert tensors is not None
    stored = load_file(folder / "adapter_model.safetensors")
    assert len(tensors) == len(stored) == 8
    for name, tensor in tensors.items():
        assert torch.equal(tensor, stored[f"base_model.model.{name}.weight"])


@pytest.mark.parametrize(
    "same",
    [
        {"r": 4},
        {"lora_alpha": 6},
        {"lora_alpha": 6.0},
        {"use_rslora": False},
        {"rank_pattern": {"q_proj": 2}},
        {"target_modules": ("down_proj", "q_proj")},
        {"target_modules": r".*\.(q_proj|down_proj)"},
        {"lora_dropout": 0.2},
    ],
    ids=str,
)
def test_what_the_job_repeats_is_no_conflict(
    same: dict[str, Any], make_adapter: MakeAdapter, names: ModuleNames
) -> None:
    resolved = resolve_adapter(config(make_adapter(**PATTERNS), **same), names)
    assert resolved.config.lora_dropout == same.get("lora_dropout", 0.0)


@pytest.mark.parametrize(
    ("other", "ours", "theirs"),
    [
        ({"r": 8}, "8", "4"),
        ({"lora_alpha": 16}, "16", "6"),
        ({"use_rslora": True}, "True", "False"),
        ({"rank_pattern": {}}, "{}", "{q_proj: 2}"),
        ({"alpha_pattern": {"q_proj": 3}}, "{q_proj: 3}", "{down_proj: 3}"),
        ({"target_modules": "all-linear"}, r"all-linear \(14 modules\)", r"\(4 modules\)"),
        ({"target_modules": ("q_proj",)}, r"\[q_proj\] \(2 modules\)", r"\(4 modules\)"),
    ],
)
def test_what_the_job_contradicts_is_named(
    other: dict[str, Any], ours: str, theirs: str, make_adapter: MakeAdapter, names: ModuleNames
) -> None:
    folder = make_adapter(**PATTERNS)
    (field,) = other
    message = rf"adapter\.{field}: found {ours}, when init_from .*source has .*{theirs}.*Remove"
    with pytest.raises(AdapterError, match=message):
        resolve_adapter(config(folder, **other), names)


def test_all_conflicts_are_named_at_once(make_adapter: MakeAdapter, names: ModuleNames) -> None:
    with pytest.raises(AdapterError) as error:
        resolve_adapter(config(make_adapter(), r=8, lora_alpha=3), names)
    assert "adapter.r:" in str(error.value)
    assert "adapter.lora_alpha:" in str(error.value)


def rewrite(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def rename(folder: Path, old: str, new: str) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({key.replace(old, new): tensor for key, tensor in load_file(path).items()}, path)


def test_folders_of_another_base(make_adapter: MakeAdapter, names: ModuleNames) -> None:
    folder = make_adapter()
    rename(folder, "layers.1", "layers.7")
    with pytest.raises(
        AdapterError, match=r"adapts model\.layers\.7\..*, and the base has no such"
    ):
        resolve_adapter(config(folder), names)
    rename(folder, "layers.7.self_attn.q_proj", "layers.0.mlp.gate_proj")
    with pytest.raises(AdapterError, match=r"gate_proj of shape \[32, 32\].* has \[48, 32\] there"):
        resolve_adapter(config(folder), names)
    rename(folder, "model.model.layers.0.mlp.gate_proj", "model.lm_head")
    with pytest.raises(AdapterError, match=r"lm_head .*embeddings and the head are not adapted"):
        resolve_adapter(config(folder), names)


@pytest.mark.parametrize(
    ("peft_settings", "phrases"),
    [
        ({"use_dora": True}, ["use_dora", "DoRA's magnitudes", "merge_and_unload"]),
        (
            {"modules_to_save": ["lm_head"]},
            ["modules_to_save", "whole modules", "merge_and_unload"],
        ),
        ({"bias": "lora_only"}, ["bias", "biases of the base", "merge_and_unload"]),
        ({"lora_bias": True}, ["lora_bias", "beside B", "merge_and_unload"]),
        ({"init_lora_weights": "pissa"}, ["init_lora_weights", "shifts", "initial_model"]),
        ({"init_lora_weights": "olora"}, ["init_lora_weights", "shifts", "initial_model"]),
        (
            {"target_modules": ["q_proj", "embed_tokens"]},
            ["lora_embedding_", "LoRA on embeddings", "merge_and_unload"],
        ),
        (
            {"trainable_token_indices": [1, 2]},
            ["trainable_token_indices", "rows of the embedding", "merge_and_unload"],
        ),
    ],
    ids=str,
)
def test_what_is_refused_says_why_and_what_to_do(
    peft_settings: dict[str, Any], phrases: list[str], make_adapter: MakeAdapter
) -> None:
    """On folders that PEFT itself has written with these settings."""
    with pytest.raises(AdapterError) as error:
        read_folder(make_adapter(**peft_settings))
    for phrase in phrases:
        assert phrase in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite(
    dtype: torch.dtype, bad: float, make_adapter: MakeAdapter
) -> None:
    """Seen without torch in each number format, and only where one is."""
    folder = make_adapter()
    path = folder / "adapter_model.safetensors"
    tensors = {key: tensor.to(dtype) for key, tensor in load_file(path).items()}
    largest = torch.finfo(dtype).max
    next(iter(tensors.values()))[0, 1] = largest
    save_file(tensors, path)
    assert read_folder(folder).shapes
    key = list(tensors)[-1]
    tensors[key][-1, -1] = bad
    save_file(tensors, path)
    with pytest.raises(AdapterError, match=f"{key}: a weight is NaN or infinite"):
        read_folder(folder)


def test_a_number_format_that_is_not_read(make_adapter: MakeAdapter) -> None:
    folder = make_adapter()
    path = folder / "adapter_model.safetensors"
    save_file({key: tensor.to(torch.int8) for key, tensor in load_file(path).items()}, path)
    with pytest.raises(AdapterError, match=r"of type I8; allowed: F16, F32, F64, BF16"):
        read_folder(folder)


def test_another_base_name_is_a_note(make_adapter: MakeAdapter, tiny_base: Path) -> None:
    source = read_folder(make_adapter())
    assert note_on_base(source, str(tiny_base)) is None
    note = note_on_base(source, "another/base")
    assert note is not None
    assert str(tiny_base) in note
    assert "another/base" in note


def test_where_a_run_would_write_over_its_start(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    outputs = [tmp_path / "runs" / name for name in ("a", "b")]
    inside = outputs[1] / "adapter"
    inside.parent.mkdir(parents=True)
    make_adapter().rename(inside)
    for place in (inside, outputs[1], tmp_path / "runs" / "a" / ".." / "b"):
        assert overwritten_by(str(place), outputs) == outputs[1]
    assert overwritten_by(str(inside), outputs[:1]) is None
    assert overwritten_by(str(tmp_path / "elsewhere"), outputs) is None


def test_keys_that_do_nothing_are_refused_in_a_job_and_taken_in_a_folder(
    make_adapter: MakeAdapter, names: ModuleNames
) -> None:
    pattern = {"q_proj": 2, "qproj": 3}
    with pytest.raises(AdapterError, match=r"adapter\.rank_pattern: found 'qproj', which fits no"):
        resolve_adapter(LoraConfig(rank_pattern=pattern), names)
    folder = make_adapter(rank_pattern=pattern)
    assert resolve_adapter(config(folder), names).config.rank_pattern == pattern


def test_dropout_of_the_folder_is_the_default(
    make_adapter: MakeAdapter, names: ModuleNames
) -> None:
    folder = make_adapter(lora_dropout=0.3)
    assert resolve_adapter(config(folder), names).config.lora_dropout == 0.3
    assert resolve_adapter(config(folder, lora_dropout=0.0), names).config.lora_dropout == 0.0


def test_pefts_own_key_order_is_met(make_adapter: MakeAdapter, names: ModuleNames) -> None:
    """PEFT gives target_modules in any order; ours is the base's."""
    folder = make_adapter()
    rewrite(folder, target_modules=["down_proj", "q_proj"])
    targets = resolve_adapter(config(folder), names).targets
    assert list(targets) == [name for name in names.linears if name in targets]
    assert peft.PeftConfig.from_pretrained(folder).target_modules == {"q_proj", "down_proj"}
