"""The conversion against transformers' own reading of the same file, and its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorafusion.errors import ModelError
from lorafusion.models.gguf import LAYER_NAMES, convert_gguf, unpermute_rope

HIDDEN, FF, HEADS, KV_HEADS, LAYERS = 64, 96, 4, 2, 2
ROWS = {"attn_k": HIDDEN // 2, "attn_v": HIDDEN // 2, "ffn_gate": FF, "ffn_up": FF}
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def vocabulary(tiny_base: Path) -> tuple[list[str], list[str]]:
    """Tokens and merges of the tests' tokenizer, as a GGUF file lists them."""
    model = json.loads((tiny_base / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return tokens, [" ".join(merge) for merge in model["merges"]]


def write_gguf(path: Path, vocabulary: tuple[list[str], list[str]], **changes: str) -> None:
    """Write a random Llama: Q4_1 linears, a Q8_0 embedding, float32 norms."""
    tokens, merges = vocabulary
    writer = GGUFWriter(path, changes.get("architecture", "llama"))
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FF)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(changes.get("pre", "smollm"))
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(merges)
    for role, index in (("unk", 0), ("bos", 1), ("eos", 2), ("pad", 2)):
        getattr(writer, f"add_{role}_token_id")(index)
    writer.add_chat_template(TEMPLATE)
    if "scaling" in changes:
        writer.add_string("llama.rope.scaling.type", changes["scaling"])
    rng = np.random.default_rng(0)

    def add(name: str, shape: tuple[int, ...], kind: GGMLQuantizationType) -> None:
        weight = rng.standard_normal(shape, dtype=np.float32) * 0.2
        writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)

    add("token_embd.weight", (len(tokens), HIDDEN), GGMLQuantizationType.Q8_0)
    add("output_norm.weight", (HIDDEN,), GGMLQuantizationType.F32)
    for layer in range(LAYERS):
        for role in LAYER_NAMES:
            if role.endswith("norm"):
                add(f"blk.{layer}.{role}.weight", (HIDDEN,), GGMLQuantizationType.F32)
            else:
                shape = (ROWS.get(role, HIDDEN), FF if role == "ffn_down" else HIDDEN)
                add(f"blk.{layer}.{role}.weight", shape, GGMLQuantizationType.Q4_1)
    if "extra" in changes:
        add(changes["extra"], (HIDDEN,), GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_weights_and_logits_equal_transformers_reading(tmp_path: Path, vocabulary) -> None:
    write_gguf(tmp_path / "tiny.gguf", vocabulary)
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "model")

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    ours, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", output_loading_info=True, dtype=torch.float32
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    expected = theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, expected[name].float()), name
    ids = torch.arange(12)[None]
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits)
    assert ours.config.rope_parameters["rope_theta"] == 100000.0
    assert ours.config.tie_word_embeddings


def test_untied_head_is_kept(tmp_path: Path, vocabulary) -> None:
    write_gguf(tmp_path / "tiny.gguf", vocabulary, extra="output.weight")
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "model")
    assert "lm_head.weight" in load_file(tmp_path / "model" / "model.safetensors")
    assert not json.loads((tmp_path / "model" / "config.json").read_text())["tie_word_embeddings"]


def test_tokenizer_round_trip_digits_and_special_tokens(tmp_path: Path, vocabulary) -> None:
    write_gguf(tmp_path / "tiny.gguf", vocabulary)
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "the quick fox, 2026 — ünïcode\n\ttoo"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.tokenize("1234") == ["1", "2", "3", "4"]
    assert tokenizer("<|im_start|>").input_ids == [1]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 2)
    assert tokenizer.chat_template == TEMPLATE


def test_unpermute_pairs_row_i_with_the_row_half_a_head_later() -> None:
    # Two heads of four rows, in GGUF's order: rotary pairs are neighbours.
    rows = np.array([0, 2, 1, 3, 4, 6, 5, 7], dtype=np.float32)[:, None]
    assert unpermute_rope(rows, 2)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "qwen2"}, "general.architecture is 'qwen2'; only 'llama'"),
        ({"pre": "llama-bpe"}, "tokenizer.ggml.pre is 'llama-bpe'; only 'smollm'"),
        ({"scaling": "yarn"}, "rope.scaling.type is 'yarn'"),
        ({"extra": "blk.0.attn_q.bias"}, "no tensor 'blk.0.attn_q.bias'"),
        ({"extra": "rope_freqs.weight"}, "no tensor 'rope_freqs.weight'"),
    ],
)
def test_refuses_what_it_would_convert_wrongly(
    tmp_path: Path, vocabulary, changes: dict[str, str], message: str
) -> None:
    write_gguf(tmp_path / "tiny.gguf", vocabulary, **changes)
    with pytest.raises(ModelError, match=message):
        convert_gguf(tmp_path / "tiny.gguf", tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("content", [b"", b"GGUF", b"PK\x03\x04 not a GGUF file at all, but long"])
def test_refuses_a_file_that_is_no_gguf(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(ModelError, match="not a readable GGUF file"):
        convert_gguf(tmp_path / "x.gguf", tmp_path / "model")


def test_fetched_model_knows_the_capital_of_france(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.inference_mode():
        best = model(ids).logits[0, -1].argmax()
    assert tokenizer.decode(best) == " Paris"
