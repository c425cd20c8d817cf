from __future__ import annotations

import pytest

from lorafusion.errors import PlanError
from lorafusion.planner.shape import ModelShape
from tests.planner.base_configs import CONFIGS

LLAMA = CONFIGS["Llama-3.1-8B"]


# Parameters in all, as the models' own pages give them, without norms and biases.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("Llama-3.1-8B", 8030),
        ("Llama-3.1-70B", 70553),
        ("Qwen2.5-32B", 32763),
        ("SmolLM2-135M", 134.5),
        ("Mistral-7B-v0.3", 7248),
        ("gemma-2-9b", 9242),
        ("Phi-3-mini-4k", 3821),
        ("gpt2", 124.4),
    ],
)
def test_every_familys_keys_give_its_known_size(name: str, millions: float) -> None:
    shape = ModelShape.from_config(CONFIGS[name], dtype="bfloat16")
    assert shape.parameters == pytest.approx(millions * 1e6, rel=1e-3)


def test_sizes_of_an_8b() -> None:
    shape = ModelShape.from_config(LLAMA)
    assert (shape.query, shape.key, shape.head_dim, shape.dtype_bytes) == (4096, 1024, 128, 2)
    assert shape.layer_parameters == 218_103_808
    assert [p.name for p in shape.projections][::6] == ["q_proj", "down_proj"]
    assert (shape.projections[-1].inputs, shape.projections[-1].outputs) == (14336, 4096)
    assert shape.gated
    assert not shape.tied
    assert shape.norm_columns == 2 * 4096


def test_families_with_linears_of_their_own() -> None:
    phi = ModelShape.from_config(CONFIGS["Phi-3-mini-4k"])
    assert [(p.name, p.outputs) for p in phi.projections] == [
        ("qkv_proj", 3 * 3072),
        ("o_proj", 3072),
        ("gate_up_proj", 2 * 8192),
        ("down_proj", 3072),
    ]
    gpt2 = ModelShape.from_config(CONFIGS["gpt2"], "float32")
    assert [(p.inputs, p.outputs) for p in gpt2.projections] == [
        (768, 2304),
        (768, 768),
        (768, 3072),
        (3072, 768),
    ]
    assert (gpt2.gated, gpt2.tied, gpt2.positions, gpt2.dtype_bytes) == (False, True, 1024, 4)


def test_gemma_is_tied_has_wide_heads_and_four_norms() -> None:
    shape = ModelShape.from_config(CONFIGS["gemma-2-9b"])
    assert (shape.tied, shape.query, shape.norm_columns) == (True, 4096, 4 * 3584)


def test_qwen3_norms_queries_and_keys() -> None:
    config = {**LLAMA, "model_type": "qwen3", "head_dim": 128}
    assert ModelShape.from_config(config).norm_columns == 2 * 4096 + 4096 + 1024


def test_no_kv_heads_means_as_many_as_heads() -> None:
    config = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
    assert ModelShape.from_config(config).kv_heads == 32


def test_the_runs_dtype_goes_before_the_configs() -> None:
    assert ModelShape.from_config(LLAMA, "float64").dtype_bytes == 8
    config = {**LLAMA, "torch_dtype": None, "dtype": "float32"}
    assert ModelShape.from_config(config).dtype_bytes == 4


def test_all_missing_fields_are_named() -> None:
    config = {"model_type": "llama", "hidden_size": 64, "vocab_size": 320, "dtype": "float32"}
    with pytest.raises(PlanError) as error:
        ModelShape.from_config(config)
    for name in ("num_attention_heads", "num_hidden_layers", "intermediate_size"):
        assert name in str(error.value)
    assert "hidden_size" not in str(error.value)
    with pytest.raises(PlanError, match="intermediate_size or n_inner missing"):
        ModelShape.from_config({**LLAMA, "intermediate_size": None})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 0}, "hidden_size is 0; allowed: an integer of at least 1"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"num_hidden_layers": 1.5}, "num_hidden_layers is 1.5"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"num_attention_heads": 33}, "num_attention_heads is 33; allowed: a divisor of 4096"),
        ({"num_key_value_heads": 5}, "num_key_value_heads is 5; allowed: a divisor of 32"),
        ({"torch_dtype": "int4"}, "dtype is 'int4'; allowed: bfloat16, float16, float32"),
        ({"torch_dtype": None}, "dtype or torch_dtype missing"),
        ({"num_local_experts": 8}, "num_local_experts is 8; allowed: dense decoders"),
    ],
)
def test_wrong_fields_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        ModelShape.from_config({**LLAMA, **change})
