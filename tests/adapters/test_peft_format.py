from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from lorafusion.adapters.card import AdapterFacts, adapter_card
from lorafusion.adapters.lora import LoraConfig
from lorafusion.adapters.peft_format import (
    StoredAdapter,
    load_adapter,
    minimal_targets,
    save_adapter,
)
from lorafusion.errors import AdapterError, OutputError

Modules = dict[str, tuple[Tensor, Tensor]]
Q0 = "model.layers.0.self_attn.q_proj"


def load_base(folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def linear(base: nn.Module, name: str) -> nn.Linear:
    module = base.get_submodule(name)
    assert isinstance(module, nn.Linear)
    return module


def linear_names(base: nn.Module) -> list[str]:
    return [name for name, module in base.named_modules() if isinstance(module, nn.Linear)]


def random_modules(base: nn.Module, names: list[str], rank: int) -> Modules:
    generator = torch.Generator().manual_seed(3)
    modules: Modules = {}
    for name in names:
        size = linear(base, name)
        a = torch.randn(rank, size.in_features, generator=generator) * 0.2
        b = torch.randn(size.out_features, rank, generator=generator) * 0.2
        modules[name] = (a, b)
    return modules


def save(folder: Path, config: LoraConfig, modules: Modules, linears: list[str]) -> None:
    adapter = StoredAdapter(config, "some/base", modules)
    save_adapter(folder, adapter, linears=linears, card="x\n")


def logits_by_hand(base: nn.Module, modules: Modules, scale: float) -> Tensor:
    """Merge s·B·A into the weights of ``base`` and run it."""
    with torch.no_grad():
        for name, (a, b) in modules.items():
            weight = linear(base, name).weight
            weight += scale * (b.to(weight.dtype) @ a.to(weight.dtype))
    return logits(base)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 40).reshape(1, -1)).logits


ALL_IN_LAYERS_0_TO_2 = [
    f"model.layers.{i}.{name}"
    for i in range(3)
    for name in [
        *(f"self_attn.{x}_proj" for x in "qkvo"),
        *(f"mlp.{x}_proj" for x in ("gate", "up", "down")),
    ]
]
TARGETS = {
    "everywhere": ([f"model.layers.{i}.self_attn.{x}_proj" for i in range(4) for x in "qv"], 2),
    "one layer": ([Q0], 1),
    "one layer of one name, all of another": (
        [Q0, *(f"model.layers.{i}.mlp.down_proj" for i in range(4))],
        2,
    ),
    # From 20 names on PEFT shortens the list by itself.
    "three layers of four": (ALL_IN_LAYERS_0_TO_2, 21),
}


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama with four layers, so that 21 linears can be a part of them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("four_layers")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            initializer_range=0.1,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rslora", [False, True], ids=["alpha/r", "rslora"])
@pytest.mark.parametrize("targets", TARGETS)
def test_peft_loads_our_folder_with_equal_logits(
    base_folder: Path, tmp_path: Path, targets: str, rslora: bool, dtype: torch.dtype
) -> None:
    names, listed = TARGETS[targets]
    base = load_base(base_folder, dtype)
    modules = random_modules(base, names, rank=3)
    config = LoraConfig(r=3, lora_alpha=5, use_rslora=rslora, lora_dropout=0.3)
    save(tmp_path / "adapter", config, modules, linear_names(base))
    assert (
        len(json.loads((tmp_path / "adapter/adapter_config.json").read_text())["target_modules"])
        == listed
    )

    theirs = peft.PeftModel.from_pretrained(load_base(base_folder, dtype), tmp_path / "adapter")
    adapted = [n for n, m in theirs.base_model.model.named_modules() if hasattr(m, "lora_A")]
    assert sorted(adapted) == sorted(names)
    found = logits(theirs.to(dtype))  # PEFT holds A and B in float32 under a float64 base too
    before = logits(base)
    expected = logits_by_hand(base, modules, config.scale)

    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    assert (expected - before).abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("adapted", "expected"),
    [
        (["l.0.q", "l.1.q"], ["q"]),
        (["l.0.q", "l.1.q", "l.1.v"], ["q", "l.1.v"]),
        (["l.0.q"], ["l.0.q"]),
        (["l.0.v", "l.1.v"], ["v"]),
        (["head"], ["head"]),
    ],
)
def test_targets_select_no_more_than_what_is_adapted(
    adapted: list[str], expected: list[str]
) -> None:
    linears = ["l.0.q", "l.1.q", "l.0.v", "l.1.v", "head"]
    assert minimal_targets(adapted, linears) == expected


def test_folder_holds_what_vllm_needs_and_plain_files(base_folder: Path, tmp_path: Path) -> None:
    base = load_base(base_folder)
    modules = random_modules(base, [Q0], rank=4)
    config = LoraConfig(r=4, lora_alpha=8.0)
    save(tmp_path / "out" / "a", config, modules, linear_names(base))
    folder = tmp_path / "out" / "a"

    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    fields = json.loads((folder / "adapter_config.json").read_text())
    assert fields["peft_type"] == "LORA"
    assert fields["bias"] == "none"
    assert isinstance(fields["lora_alpha"], int)
    assert fields["target_modules"] == [Q0]
    assert not fields["modules_to_save"]
    tensors = load_file(folder / "adapter_model.safetensors")
    assert set(tensors) == {f"base_model.model.{Q0}.lora_{x}.weight" for x in "AB"}
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert os.listdir(tmp_path / "out") == ["a"]


def test_our_folder_comes_back_bit_for_bit(base_folder: Path, tmp_path: Path) -> None:
    base = load_base(base_folder)
    shared = torch.randn(2, 4, 32)[1]  # one A for two modules, a view of a larger tensor
    k0 = Q0.replace("q_proj", "k_proj")
    modules = {Q0: (shared, torch.randn(4, 32).T), k0: (shared, torch.randn(16, 4))}
    config = LoraConfig(r=4, lora_alpha=6.5, lora_dropout=0.1, use_rslora=True)
    save(tmp_path / "a", config, modules, linear_names(base))

    loaded = load_adapter(tmp_path / "a")

    assert loaded.base_model == "some/base"
    assert loaded.config == config.model_copy(update={"target_modules": (Q0, k0)})
    assert loaded.modules.keys() == modules.keys()
    for name, (a, b) in modules.items():
        assert torch.equal(loaded.modules[name][0], a)
        assert torch.equal(loaded.modules[name][1], b)


@pytest.mark.parametrize(
    "targets",
    ["all-linear", ["q_proj", "o_proj"], r"model\.layers\.0\.mlp\..*_proj"],
    ids=["all-linear", "list", "regex"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_we_load_what_peft_saves(
    base_folder: Path, tmp_path: Path, targets: str | list[str], dtype: torch.dtype
) -> None:
    settings = {"r": 5, "lora_alpha": 7, "lora_dropout": 0.2, "target_modules": targets}
    config = peft.LoraConfig(**settings, init_lora_weights=False, task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(load_base(base_folder), config).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype).float()
    expected = logits(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    if dtype is torch.bfloat16:
        weights = tmp_path / "theirs" / "adapter_model.safetensors"
        save_file({k: v.to(dtype) for k, v in load_file(weights).items()}, weights)

    loaded = load_adapter(tmp_path / "theirs")

    assert (loaded.config.r, loaded.config.lora_alpha, loaded.config.lora_dropout) == (5, 7, 0.2)
    assert loaded.base_model == str(base_folder)
    found = logits_by_hand(load_base(base_folder), loaded.modules, loaded.config.scale)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.fixture
def adapter(base_folder: Path, tmp_path: Path) -> Path:
    """A sound adapter folder to damage."""
    base = load_base(base_folder)
    config = LoraConfig(r=2)
    save(tmp_path / "adapter", config, random_modules(base, [Q0], 2), linear_names(base))
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("modules_to_save", ["lm_head"]),
        ("bias", "all"),
        ("lora_bias", True),
        ("rank_pattern", {"q_(": 4}),
        ("rank_pattern", {"q_proj": 0}),
        ("alpha_pattern", {"q_proj": -4}),
        ("alpha_pattern", [4]),
        ("peft_type", "IA3"),
        ("task_type", "SEQ_CLS"),
        ("init_lora_weights", "pissa"),
        ("target_parameters", ["experts.down_proj"]),
        ("trainable_token_indices", [1]),
        ("layer_replication", [[0, 2]]),
        ("a_field_of_tomorrow", 3),
        ("target_modules", None),
        ("r", 0),
        ("lora_alpha", "many"),
    ],
)
def test_unsupported_fields_are_refused_by_name(adapter: Path, field: str, value: object) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(AdapterError, match=field):
        load_adapter(adapter)


def test_layer_choices_of_peft_become_full_names(adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    fields = {"target_modules": ["q_proj"], "layers_to_transform": [0]}
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    assert load_adapter(adapter).config.target_modules == (Q0,)


def test_missing_and_damaged_files_are_named(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"nowhere: no adapter_config\.json"):
        load_adapter(tmp_path / "nowhere")
    weights = adapter / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-10])
    with pytest.raises(AdapterError, match="damaged"):
        load_adapter(adapter)
    weights.unlink()
    with pytest.raises(AdapterError, match=r"no adapter_model\.safetensors"):
        load_adapter(adapter)
    (adapter / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(AdapterError, match=r"adapter_model\.bin is a pickle"):
        load_adapter(adapter)
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterError, match="JSON"):
        load_adapter(adapter)
    (adapter / "adapter_config.json").write_text("[]")
    with pytest.raises(AdapterError, match="no JSON object"):
        load_adapter(adapter)


def test_tensors_that_do_not_fit_are_named(adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    good = load_file(weights)
    key_a, key_b = sorted(good)
    wrong = {
        "one of A and B only": {key_a: good[key_a]},
        "rank 2 needs": {key_a: torch.ones(3, 32), key_b: torch.ones(32, 3)},
        "lora_embedding_A": {**good, "base_model.model.embed.lora_embedding_A": torch.ones(2, 2)},
        "NaN or infinite": {**good, key_b: torch.full_like(good[key_b], torch.inf)},
        "no module": {},
    }
    for message, tensors in wrong.items():
        save_file(tensors, weights)
        with pytest.raises(AdapterError, match=message):
            load_adapter(adapter)


def test_saving_never_destroys(adapter: Path, base_folder: Path, tmp_path: Path) -> None:
    base = load_base(base_folder)
    config = LoraConfig(r=2)
    before = (adapter / "adapter_model.safetensors").read_bytes()

    bad = {Q0: (torch.full((2, 32), torch.nan), torch.zeros(32, 2))}
    with pytest.raises(AdapterError, match=Q0):
        save(adapter, config, bad, linear_names(base))
    assert (adapter / "adapter_model.safetensors").read_bytes() == before

    good = {Q0: (torch.ones(2, 32), torch.ones(32, 2))}
    (adapter / "metrics.jsonl").write_text("precious")
    with pytest.raises(OutputError, match=r"metrics\.jsonl"):
        save(adapter, config, good, linear_names(base))
    assert (adapter / "metrics.jsonl").read_text() == "precious"

    (adapter / "metrics.jsonl").unlink()
    save(adapter, config, good, linear_names(base))
    assert torch.equal(load_adapter(adapter).modules[Q0][0], good[Q0][0])

    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="file"):
            save(path, config, good, linear_names(base))
    shutil.rmtree(adapter)
    assert os.listdir(tmp_path) == ["file"]


def facts(**changes: object) -> AdapterFacts:
    given: dict[str, object] = {
        "name": "sarcasm|r8",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "dataset": "data/sarcasm.jsonl",
        "config": LoraConfig(r=12, target_modules=("q_proj", "v_proj")),
        "settings": {"learning_rate": 2e-4, "max_grad_norm": None},
        "steps": 40,
        "tokens": 12345,
        "loss_first": 3.25,
        "loss_last": 1.5,
        "eval_before": None,
        "eval_after": 0.0,
    }
    return AdapterFacts(**(given | changes))


def test_card_states_the_facts_and_leaves_out_what_was_not_measured() -> None:
    text = adapter_card(facts())
    front = yaml.safe_load(text.split("---\n")[1])
    assert front == {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "library_name": "peft",
        "tags": ["lora", "lorafusion"],
    }
    for line in [
        "| dataset | data/sarcasm.jsonl |",
        "| r | 12 |",
        "| target_modules | q_proj, v_proj |",
        "| learning_rate | 0.0002 |",
        "| steps | 40 |",
        "| training loss, first step | 3.2500 |",
        "| training loss, last step | 1.5000 |",
        "| held-out loss after training | 0.0000 |",
        "lorafusion generate --adapter",
        "PeftModel.from_pretrained",
        "--max-lora-rank 16",
    ]:
        assert line in text
    assert "before training" not in text
    assert "max_grad_norm" not in text


def test_card_of_a_base_in_a_folder_names_it_outside_the_front_matter() -> None:
    text = adapter_card(facts(base_model="/models/a 'b'", config=LoraConfig(r=1000)))
    assert "base_model" not in yaml.safe_load(text.split("---\n")[1])
    assert "/models/a 'b'" in text
    assert "vLLM" not in text
