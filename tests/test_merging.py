"""A merged model is base + adapter, in the base's own number format, and nothing else changes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorafusion import merging
from lorafusion.errors import AdapterError, ModelError, OutputError
from lorafusion.merging import MergeResult, merge
from tests.conftest import make_llama, make_tokenizer
from tests.training.runs import figure

IDS = torch.arange(3, 40).reshape(1, -1)
PATTERNS = {"rank_pattern": {"q_proj": 2, "c_attn": 5}, "alpha_pattern": {"down_proj": 3}}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits.double()


def base_of(folder: Path, dtype: Any = "auto") -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def make_adapter(base: Path, folder: Path, **settings: Any) -> Path:
    given = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", **settings}
    config = peft.LoraConfig(**given, task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(base_of(base, torch.float32), config)
    generator = torch.Generator().manual_seed(7)
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.15, generator=generator)
    theirs.save_pretrained(folder)
    return folder


def make_gpt2(folder: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = GPT2Config(
            vocab_size=320,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            initializer_range=0.2,
            bos_token_id=1,
            eos_token_id=2,
        )
        GPT2LMHeadModel(config).save_pretrained(folder)


@pytest.fixture(scope="module", params=["tied", "untied", "gpt2"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    make_tokenizer(folder)
    if request.param == "gpt2":
        make_gpt2(folder)
    else:
        make_llama(folder, tied=request.param == "tied")
    return folder


def run(adapter: Path, output: Path, **options: Any) -> MergeResult:
    given: dict[str, Any] = {"base_model": None, "dtype": None, **options}
    return merge(adapter, output, **given, report=lambda _: None)


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("rslora", [False, True], ids=["alpha/r", "rslora"])
def test_float32(base: Path, rslora: bool, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "adapter", use_rslora=rslora, **PATTERNS)
    expected = logits(peft.PeftModel.from_pretrained(base_of(base), adapter))
    before = content(base)
    result = run(adapter, tmp_path / "merged")
    assert content(base) == before, "the base's folder was changed"
    assert result.dtype == "float32"
    merged = base_of(result.folder)
    found = logits(merged)
    assert (expected - logits(base_of(base))).abs().max() > 1
    apart = (found - expected).abs().max().item()
    figure(f"merged {base.name}, float32, logits", apart)
    assert apart < 2e-5 * expected.abs().max()
    wrapped = base_of(base, torch.float64)
    exact = logits(peft.PeftModel.from_pretrained(wrapped, adapter).double())
    torch.testing.assert_close(logits(merged.double()), exact, rtol=1e-5, atol=1e-4)


def test_only_the_adapted_linears_change(base: Path, tmp_path: Path) -> None:
    target = "c_attn" if "gpt2" in base.name else "q_proj"
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=[target])
    result = run(adapter, tmp_path / "merged")
    ours, theirs = (load_file(f / "model.safetensors") for f in (result.folder, base))
    assert ours.keys() == theirs.keys(), "a tied head was written out, or a name has changed"
    changed = {key for key, tensor in theirs.items() if not torch.equal(ours[key], tensor)}
    assert changed == {key for key in theirs if f"{target}.weight" in key}
    assert result.modules == len(changed) == 2


def test_what_comes_along(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    # Refused by transformers when it saves, but not when it loads.
    (folder / "generation_config.json").write_text('{"temperature": 0.3, "do_sample": false}')
    config = json.loads((folder / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")  # as transformers 4 wrote it
    (folder / "config.json").write_text(json.dumps(config))
    adapter = make_adapter(base, tmp_path / "adapter")
    run(adapter, tmp_path / "merged", base_model=str(folder))
    ours = tmp_path / "merged"
    assert sorted(os.listdir(ours)) == sorted(os.listdir(folder))
    for name in os.listdir(folder):
        if name not in ("model.safetensors",):
            same = json.loads if name.endswith(".json") else str
            assert same((ours / name).read_text()) == same((folder / name).read_text()), name
    modes = {path.stat().st_mode for path in ours.iterdir()}
    assert len(modes) == 1, "some files are private and others are not"
    text = "the quick brown fox"
    tokenisers = [AutoTokenizer.from_pretrained(place) for place in (ours, folder)]
    assert tokenisers[0](text)["input_ids"] == tokenisers[1](text)["input_ids"]


def test_bfloat16_base_stays_bfloat16_and_is_rounded_once(base: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    base_of(base, torch.bfloat16).save_pretrained(half)
    adapter = make_adapter(base, tmp_path / "adapter", **PATTERNS)
    result = run(adapter, tmp_path / "merged", base_model=str(half))
    assert result.dtype == "bfloat16"
    config = json.loads((result.folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    tensors = load_file(result.folder / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    exact = peft.PeftModel.from_pretrained(base_of(half).double(), adapter).double()
    exact = exact.merge_and_unload()
    for name, parameter in exact.named_parameters():
        if name in tensors:
            rounded = parameter.detach().to(torch.bfloat16)
            apart = (tensors[name].float() - rounded.float()).abs()
            # Float32 rounds before bfloat16 does: a tie may fall to the other side, by one step.
            assert (apart > 0).double().mean() < 2e-3, name
    expected, found = logits(exact), logits(base_of(result.folder))
    apart = ((found - expected).abs().max() / expected.abs().max()).item()
    figure(f"merged {base.name}, bfloat16, logits relative to the largest", apart)
    assert apart < 0.06


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_another_dtype(base: Path, dtype: str, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "adapter")
    result = run(adapter, tmp_path / "merged", dtype=dtype)
    assert result.dtype == dtype
    tensors = load_file(result.folder / "model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {f"torch.{dtype}"}
    assert json.loads((result.folder / "config.json").read_text())["dtype"] == dtype


def test_large_models_are_sharded(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter(base, tmp_path / "adapter")
    whole = run(adapter, tmp_path / "whole")
    monkeypatch.setattr(merging, "_MAX_SHARD", "50KB")
    parts = run(adapter, tmp_path / "parts")
    assert len(list(parts.folder.glob("model-*-of-*.safetensors"))) > 1
    assert (parts.folder / "model.safetensors.index.json").exists()
    assert torch.equal(logits(base_of(whole.folder)), logits(base_of(parts.folder)))


@pytest.fixture
def adapter(tiny_base: Path, tmp_path: Path) -> Path:
    return make_adapter(tiny_base, tmp_path / "adapter")


def test_nothing_is_overwritten(tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    busy = tmp_path / "busy"
    busy.mkdir()
    (busy / "precious").write_text("x")
    (tmp_path / "file").write_text("x")
    places = (busy, tmp_path / "file", tiny_base, adapter, tiny_base / "in", adapter / "in")
    for place in places:
        before = content(tmp_path), content(tiny_base)
        with pytest.raises(OutputError, match=r"Choose another"):
            run(adapter, place)
        assert (content(tmp_path), content(tiny_base)) == before
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run(adapter, empty).folder == empty


def test_a_failed_write_leaves_nothing(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OutputError, match="No space left"):
        run(adapter, tmp_path / "merged")
    assert os.listdir(tmp_path) == ["adapter"]


def damage(adapter: Path, change: Any) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)


def with_a_nan(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    next(iter(tensors.values()))[0, 0] = torch.nan
    return tensors


def with_a_huge_value(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: tensor * 1e6 for key, tensor in tensors.items()}


def with_other_layers(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.replace("layers.1", "layers.9"): tensor for key, tensor in tensors.items()}


def with_a_head(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    head = "base_model.model.lm_head.lora_"
    factors = {f"{head}A.weight": torch.ones(4, 32), f"{head}B.weight": torch.ones(320, 4)}
    return {**tensors, **factors}


@pytest.mark.parametrize(
    ("change", "options", "phrase"),
    [
        (with_a_nan, {}, "NaN or infinite"),
        (with_a_huge_value, {"dtype": "float16"}, "not finite in float16"),
        (with_other_layers, {}, "has no such linear"),
        (with_a_head, {}, "embeddings and the head are not adapted"),
    ],
)
def test_a_bad_adapter_is_refused_before_anything_is_written(
    change: Any, options: dict[str, Any], phrase: str, adapter: Path, tmp_path: Path
) -> None:
    damage(adapter, change)
    with pytest.raises(AdapterError, match=phrase):
        run(adapter, tmp_path / "merged", **options)
    assert os.listdir(tmp_path) == ["adapter"]


def test_bases_that_cannot_be_merged_into(tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_llama(other, layers=1)
    with pytest.raises(AdapterError, match="has no such linear"):
        run(adapter, tmp_path / "merged", base_model=str(other))
    with pytest.raises(ModelError, match="/no/such"):
        run(adapter, tmp_path / "merged", base_model="/no/such")
    quantised = tmp_path / "quantised"
    shutil.copytree(tiny_base, quantised)
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantised / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="is quantised"):
        run(adapter, tmp_path / "merged", base_model=str(quantised))
    assert not (tmp_path / "merged").exists()


def test_a_jobs_folder_is_taken(adapter: Path, tmp_path: Path) -> None:
    job = tmp_path / "run" / "job"
    job.mkdir(parents=True)
    adapter.rename(job / "adapter")
    assert run(job, tmp_path / "merged").modules == 14
