"""``lorafusion generate`` answers as PEFT's own model does, and says what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from lorafusion.cli import build_app

PROMPTS = ("the quick brown", "yes or no", "a lazy dog answers every question", "x")
NEW_TOKENS = 12


def generate(*args: str | Path) -> Result:
    return CliRunner().invoke(build_app(), ["generate", *map(str, args)])


def peft_model(base: Path, adapter: Path | None) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return model if adapter is None else PeftModel.from_pretrained(model, adapter)


def answer(model: Any, tokenizer: Any, tokens: list[int]) -> str:
    prompt = torch.tensor([tokens])
    output = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
    )
    return tokenizer.decode(output[0, len(tokens) :], skip_special_tokens=True)


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of PEFT's making, with random A and B (rsLoRA)."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    config = LoraConfig(
        r=4, lora_alpha=8, use_rslora=True, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    wrapped = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.3, generator=generator)
    folder = tmp_path_factory.mktemp("adapter")
    wrapped.save_pretrained(folder)
    return folder


def test_equals_peft(tiny_base: Path, tiny_tokenizer: Any, adapter: Path) -> None:
    alone, adapted = peft_model(tiny_base, None), peft_model(tiny_base, adapter)
    options = ("--adapter", adapter, "--max-new-tokens", NEW_TOKENS)
    differ = 0
    for prompt in PROMPTS:
        turns = [{"role": "user", "content": prompt}]
        chat = tiny_tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        for tokens, raw in ((chat, ()), (tiny_tokenizer(prompt)["input_ids"], ("--raw",))):
            expected = answer(adapted, tiny_tokenizer, tokens)
            result = generate(prompt, *options, *raw)
            assert result.exit_code == 0, result.output
            assert result.stdout == expected + "\n"
            base = answer(alone, tiny_tokenizer, tokens)
            assert generate(prompt, *options, *raw, "--no-adapter").stdout == base + "\n"
            differ += base != expected
    assert differ == 2 * len(PROMPTS)


def test_without_a_chat_template_the_prompt_is_taken_as_it_is(
    tiny_base: Path, adapter: Path, tmp_path: Path
) -> None:
    for file in tiny_base.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    options = ("yes or no", "--adapter", adapter)
    plain = generate(*options, "--base-model", tmp_path)
    assert plain.exit_code == 0, plain.output
    assert plain.stdout == generate(*options, "--raw").stdout != generate(*options).stdout


def test_a_base_that_does_not_fit(tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(tiny_base)
    config.intermediate_size = 40
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    for file in tiny_base.glob("*tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    result = generate("yes", "--adapter", adapter, "--base-model", tmp_path)
    assert result.exit_code == 2
    assert "mlp.down_proj of shape [32, 48], and the base has [32, 40] there" in result.stderr
    assert f"it names {tiny_base}" in result.stderr


def test_an_adapter_of_modules_that_the_base_lacks(adapter: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    moved = {key.replace("layers.1.", "layers.7."): value for key, value in tensors.items()}
    save_file(moved, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    result = generate("yes", "--adapter", tmp_path)
    assert result.exit_code == 2
    assert "has no such linear" in result.stderr


@pytest.mark.parametrize(
    ("args", "phrase"),
    [
        (("--adapter", "/no/such/folder"), "no adapter_config.json there"),
        (("--adapter", "ADAPTER", "--base-model", "/no/such/base"), "/no/such/base"),
        (("--adapter", "ADAPTER", "--max-new-tokens", "250"), "made for up to 256"),
        (("--adapter", "ADAPTER", "--max-new-tokens", "0"), "--max-new-tokens"),
        ((), "--adapter"),
    ],
)
def test_mistakes_end_with_2(adapter: Path, args: tuple[str, ...], phrase: str) -> None:
    given = [str(adapter) if arg == "ADAPTER" else arg for arg in args]
    result = generate("the quick brown fox jumps", *given)
    assert result.exit_code == 2, result.output
    assert phrase in result.stderr
    assert result.stdout == ""


def test_an_empty_raw_prompt(adapter: Path) -> None:
    result = generate("", "--raw", "--adapter", adapter)
    assert result.exit_code == 2
    assert "give some text" in result.stderr
