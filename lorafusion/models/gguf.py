"""Turn a GGUF file of a Llama with a SmolLM tokenizer into a Hugging Face folder.

transformers can read such a file but not write it out again. The weights come out as float32, as
exact as the quantised file allows; the tokenizer and its chat template come out of the same file.
Needs the ``gguf`` package (``pip install 'lorafusion[demo]'``), which knows the container and its
block formats.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafusion.errors import ModelError
from lorafusion.files import replace_folder_atomic

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHER_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}


def convert_gguf(source: Path, folder: Path) -> None:
    """Write the model and tokenizer of ``source`` to ``folder``, whole or not at all.

    Args:
        source: A GGUF file of architecture ``llama`` with a ``smollm`` byte-level BPE tokenizer.
        folder: Becomes a folder that ``AutoModelForCausalLM`` and ``AutoTokenizer`` load.

    Raises:
        ModelError: The file is no GGUF file, or holds another architecture, tokenizer, rotary
            scaling or tensor than this conversion knows.
    """
    import gguf
    from safetensors.numpy import save_file

    try:
        reader = gguf.GGUFReader(source)
    except (ValueError, IndexError) as error:
        raise ModelError(f"{source}: not a readable GGUF file ({error})") from error
    _check(reader, source)
    tensors = read_tensors(reader, source)
    tied = "lm_head.weight" not in tensors
    with replace_folder_atomic(folder) as temporary:
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        _write_json(temporary / "config.json", _model_config(reader, tied=tied))
        make_tokenizer(reader).save(str(temporary / "tokenizer.json"))
        _write_json(temporary / "tokenizer_config.json", _tokenizer_config(reader))


def read_tensors(reader: GGUFReader, source: Path) -> dict[str, NDArray[np.float32]]:
    """All tensors of a Llama file under their Hugging Face names, in float32, [out, in].

    Raises:
        ModelError: A tensor has a name that a plain Llama does not have.
    """
    from gguf.quants import dequantize

    heads = {
        "attn_q": _value(reader, "llama.attention.head_count"),
        "attn_k": _value(reader, "llama.attention.head_count_kv"),
    }
    tensors: dict[str, NDArray[np.float32]] = {}
    for tensor in reader.tensors:
        role, name = _rename(tensor.name, source)
        weight = dequantize(tensor.data, tensor.tensor_type)
        tensors[name] = unpermute_rope(weight, heads[role]) if role in heads else weight
    return tensors


def unpermute_rope(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undo the row order that GGUF gives to a q or k projection.

    GGUF interleaves each head's rows so that rotary pairs are neighbours (row 2i with 2i + 1);
    Hugging Face pairs row i with row i + head_dim / 2.

    Args:
        weight: [heads * head_dim, in].
        heads: Query heads for q, KV heads for k.
    """
    import numpy as np

    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))


def make_tokenizer(reader: GGUFReader) -> Tokenizer:
    """The byte-level BPE tokenizer of a file whose ``tokenizer.ggml.pre`` is ``smollm``."""
    from gguf import TokenType
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = _value(reader, "tokenizer.ggml.tokens")
    types: list[int] = _value(reader, "tokenizer.ggml.token_type")
    merges: list[str] = _value(reader, "tokenizer.ggml.merges")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    pairs = [(left, right) for left, right in (merge.split(" ", 1) for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind == TokenType.CONTROL
        ]
    )
    return tokenizer


def _check(reader: GGUFReader, source: Path) -> None:
    expected = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
    }
    for key, allowed in expected.items():
        found = _value(reader, key, default=None)
        if found != allowed:
            raise ModelError(f"{source}: {key} is {found!r}; only {allowed!r} can be converted")
    scaling = _value(reader, "llama.rope.scaling.type", default="none")
    if scaling != "none":
        raise ModelError(
            f"{source}: llama.rope.scaling.type is {scaling!r}; only 'none' can be converted"
        )


def _rename(name: str, source: Path) -> tuple[str, str]:
    """``blk.3.attn_q.weight`` -> ``attn_q``, ``model.layers.3.self_attn.q_proj.weight``."""
    match name.split("."):
        case ["blk", layer, role, "weight"] if role in LAYER_NAMES:
            return role, f"model.layers.{layer}.{LAYER_NAMES[role]}.weight"
        case [role, "weight"] if role in OTHER_NAMES:
            return role, f"{OTHER_NAMES[role]}.weight"
        case _:
            raise ModelError(f"{source}: a Llama has no tensor {name!r}, so it is another model")


def _model_config(reader: GGUFReader, *, tied: bool) -> dict[str, Any]:
    hidden: int = _value(reader, "llama.embedding_length")
    heads: int = _value(reader, "llama.attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": _value(reader, "llama.feed_forward_length"),
        "num_hidden_layers": _value(reader, "llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _value(reader, "llama.attention.head_count_kv"),
        "head_dim": _value(reader, "llama.attention.key_length", default=hidden // heads),
        "vocab_size": len(_value(reader, "tokenizer.ggml.tokens")),
        "max_position_embeddings": _value(reader, "llama.context_length"),
        "rope_theta": _shortest(_value(reader, "llama.rope.freq_base")),
        "rms_norm_eps": _shortest(_value(reader, "llama.attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": tied,
        "bos_token_id": _value(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _value(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": _value(reader, "tokenizer.ggml.padding_token_id"),
    }


def _tokenizer_config(reader: GGUFReader) -> dict[str, Any]:
    tokens: list[str] = _value(reader, "tokenizer.ggml.tokens")

    def token(role: str) -> str:
        return tokens[_value(reader, f"tokenizer.ggml.{role}_token_id")]

    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "unk_token": token("unknown"),
        "pad_token": token("padding"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": _value(reader, "llama.context_length"),
        "chat_template": _value(reader, "tokenizer.chat_template"),
    }


_REQUIRED = object()


def _value(reader: GGUFReader, key: str, *, default: object = _REQUIRED) -> Any:
    field = reader.get_field(key)
    if field is not None:
        return field.contents()
    if default is _REQUIRED:
        raise ModelError(f"the GGUF file has no field {key!r}, which the conversion needs")
    return default


def _shortest(value: float) -> float:
    # The file stores float32: 1e-05 reads back as 9.999999747378752e-06, which no config says.
    import numpy as np

    return float(str(np.float32(value)))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
