"""What cannot be run on packed samples is refused from its config, with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lorafusion.adapters.targets import match_targets
from lorafusion.errors import AdapterError, ModelError
from lorafusion.models.load import check_base, load_base, meta_model
from lorafusion.models.refusals import longest_sample
from lorafusion.models.stage import Stage
from lorafusion.module_names import module_names
from tests.models.families import FAMILIES

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 64}


def write(folder: Path, architecture: str, **settings: Any) -> None:
    """A config alone: no weights are needed to refuse it."""
    kind = getattr(transformers, architecture).config_class
    config = kind(architectures=[architecture], **settings)
    config.save_pretrained(folder)


def rope(**settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 1e4, "factor": 2.0, **settings}}


def nested(full: str) -> dict[str, Any]:
    return {
        "layer_types": ["sliding_attention", "full_attention"],
        "num_hidden_layers": 2,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": full, "rope_theta": 1e4, "factor": 2.0},
        },
    }


QUANTISED = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
GPTQ = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "bitsandbytes": ("LlamaForCausalLM", {**SMALL, **QUANTISED}, r"quantised \(bitsandbytes\)"),
    "gptq": ("LlamaForCausalLM", {**SMALL, **GPTQ}, r"quantised \(gptq\)"),
    "dynamic rotary": ("LlamaForCausalLM", {**SMALL, **rope(rope_type="dynamic")}, "dynamic rot"),
    "dynamic in one type of layer": (
        "Gemma3ForCausalLM",
        {**SMALL, **nested("dynamic")},
        "dynamic rotary",
    ),
    "chunked attention": ("Llama4ForCausalLM", SMALL, "type chunked_attention"),
    "linear attention": ("Qwen3NextForCausalLM", SMALL, "state|linear_attention"),
    "encoder-decoder": ("T5ForConditionalGeneration", {"vocab_size": 64}, "encoder and a decoder"),
    "multimodal": ("Gemma3ForConditionalGeneration", {}, r"wraps a text model.*Gemma3ForCausalLM"),
    "alibi, bloom": ("BloomForCausalLM", {"vocab_size": 64}, "ALiBi"),
    "alibi, mpt": ("MptForCausalLM", {"vocab_size": 64}, "ALiBi"),
    "alibi, falcon": ("FalconForCausalLM", {"vocab_size": 64, "alibi": True}, "ALiBi"),
    "cross attention": ("GPT2LMHeadModel", {"add_cross_attention": True}, "cross attention"),
    "mamba": ("MambaForCausalLM", {"vocab_size": 64}, "state from token to token"),
    "mamba 2": ("Mamba2ForCausalLM", {"vocab_size": 64}, "state from token to token"),
    "recurrent": ("RwkvForCausalLM", {"vocab_size": 64}, "state from token to token|attention c"),
    "own attention": ("GPTJForCausalLM", {"vocab_size": 64}, "attention code of its own"),
    "both directions": (
        "Gemma3ForCausalLM",
        {**SMALL, "use_bidirectional_attention": True},
        "see later ones",
    ),
    "masked LM": ("BertForMaskedLM", {"vocab_size": 64}, "no causal LM.*BertForMaskedLM"),
    "classifier": ("LlamaForSequenceClassification", SMALL, "no causal LM"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_from_the_config_alone(what: str, tmp_path: Path) -> None:
    architecture, settings, message = REFUSED[what]
    write(tmp_path, architecture, **settings)
    for look in (check_base, meta_model, lambda folder: load_base(folder, "float32")):
        with pytest.raises(ModelError, match=message) as error:
            look(str(tmp_path))
        assert "allowed: " in str(error.value)
        assert str(tmp_path) in str(error.value)


def test_remote_code_is_not_run(tmp_path: Path) -> None:
    config = {"model_type": "own_model", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('the code ran')\n")
    with pytest.raises(ModelError, match=r"code of its own"):
        check_base(str(tmp_path))


def test_remote_code_beside_a_known_model_is_left_alone(tiny_base: Path, tmp_path: Path) -> None:
    """Phi-3's and others' folders name code that transformers has had itself since."""
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((tiny_base / file).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "own.OwnModel"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('the code ran')\n")
    Stage(load_base(str(tmp_path), "float32"))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_taken(name: str, tmp_path: Path) -> None:
    write_config(name, tmp_path)
    check_base(str(tmp_path))
    meta_model(str(tmp_path))


def write_config(name: str, folder: Path) -> None:
    config = FAMILIES[name].config()
    config.architectures = [FAMILIES[name].architecture]
    config.save_pretrained(folder)


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_rotary_positions_that_do_not_depend_on_length_are_taken(kind: str, tmp_path: Path) -> None:
    settings = rope(
        rope_type=kind,
        original_max_position_embeddings=64,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    )
    if kind != "llama3":
        del settings["rope_parameters"]["low_freq_factor"]
        del settings["rope_parameters"]["high_freq_factor"]
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SMALL, num_hidden_layers=2, **settings)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    Stage(load_base(str(tmp_path), "float64"))


LIMITS: dict[str, tuple[Callable[[], Any], int | None]] = {
    "by its table": (lambda: FAMILIES["gpt2"].config(), 256),
    "longrope": (lambda: FAMILIES["phi3"].config(), 128),
    "longrope in one type of layer": (
        lambda: FAMILIES["gemma3"].config(
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "short_factor": [1.0] * 6,
                    "long_factor": [2.0] * 6,
                    "original_max_position_embeddings": 100,
                },
            }
        ),
        100,
    ),
    "none": (lambda: transformers.PreTrainedConfig(), None),
}


@pytest.mark.parametrize("what", LIMITS)
def test_the_longest_sample(what: str) -> None:
    make, expected = LIMITS[what]
    assert longest_sample(make()) == expected


@pytest.mark.parametrize(
    "targets", [("gate_up_proj",), ("experts",), r".*\.experts\..*", r".*_proj"]
)
def test_experts_in_one_tensor_are_no_targets(targets: str | tuple[str, ...]) -> None:
    config = transformers.MixtralConfig(
        **SMALL, num_hidden_layers=1, num_key_value_heads=1, num_local_experts=2
    )
    names = module_names(transformers.MixtralForCausalLM(config))
    if targets == r".*_proj":  # the linears that it also selects
        assert {name.rsplit(".", 1)[-1] for name in match_targets(names, targets)} == {
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
        }
        return
    with pytest.raises(AdapterError, match=r"selects experts .*gate_up_proj.*allowed: q_proj"):
        match_targets(names, targets)
