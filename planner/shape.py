"""The sizes of a dense decoder, from a Hugging Face config as a plain dict.

Nothing is loaded: the cost model needs the shapes of the matrices and no weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lorafusion.errors import PlanError

__all__ = ["ModelShape", "Projection"]

_KEYS = {
    "hidden": ("hidden_size", "n_embd"),
    "heads": ("num_attention_heads", "n_head"),
    "layers": ("num_hidden_layers", "n_layer"),
    "vocab": ("vocab_size",),
    "intermediate": ("intermediate_size", "n_inner"),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
}
_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
# Linears of a layer in terms of h (hidden), q (all heads), k (all kv heads) and i (intermediate).
# A family that is not named here is taken to have Llama's.
_LLAMA = "q_proj:h>q k_proj:h>k v_proj:h>k o_proj:q>h gate_proj:h>i up_proj:h>i down_proj:i>h"
_LINEARS = {
    "gpt2": "c_attn:h>q+2k attn.c_proj:q>h c_fc:h>i mlp.c_proj:i>h",
    "gpt_neox": "query_key_value:h>q+2k attention.dense:q>h dense_h_to_4h:h>i dense_4h_to_h:i>h",
    "phi": "q_proj:h>q k_proj:h>k v_proj:h>k dense:q>h fc1:h>i fc2:i>h",
    "phi3": "qkv_proj:h>q+2k o_proj:q>h gate_up_proj:h>2i down_proj:i>h",
    "starcoder2": "q_proj:h>q k_proj:h>k v_proj:h>k o_proj:q>h c_fc:h>i c_proj:i>h",
}
_UNGATED = ("gpt2", "gpt_neox", "phi", "starcoder2")
# Of their activations, those that transformers writes out in torch ops, which keep four tensors for
# the backward where one op keeps its input: 0.5·x·(1 + tanh(c·(x + 0.044715·x³))).
_WRITTEN_OUT = ("gelu_new", "gelu_fast", "gelu_accurate", "quick_gelu")
# Of those that multiply two halves, the activations that run in one pass with the product, and keep
# its two factors alone (lorafusion.kernels.gated_product).
_FUSED = ("silu", "swish", "gelu_pytorch_tanh", None)
_DEFAULT_ACTIVATION = {"gpt2": "gelu_new", "phi": "gelu_new"}
# What a layer's norms run over: two of h columns each; Gemma's later ones have four, and some
# families norm the queries and keys.
_FOUR_NORMS = ("gemma2", "gemma3", "gemma3_text")
_HEAD_NORMS = ("gemma3", "gemma3_text", "qwen3", "olmo2")
# The classes of transformers whose embeddings are tied where the config does not say.
_TIED = ("gpt2", "gemma", "gemma2", "gemma3", "gemma3_text", "starcoder2")


@dataclass(frozen=True, slots=True)
class Projection:
    """One linear of a layer: ``name`` as it ends in the model, and its columns."""

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder whose layers are alike.

    Attributes:
        hidden: Columns of the hidden state.
        intermediate: Columns inside the MLP.
        heads: Attention heads.
        kv_heads: Heads of keys and values.
        head_dim: Columns of a head.
        layers: Decoder layers.
        vocab: Rows of the embedding, and of the head.
        tied: Whether the head is the embedding.
        dtype_bytes: Bytes of a weight.
        projections: The linears of a layer.
        norm_columns: Columns that the norms of a layer run over, all together.
        gated: Whether the MLP multiplies two halves, as SwiGLU does.
        activation_kept: Tensors of ``intermediate`` columns that the MLP's activation keeps for its
            backward, and that the product with the other half keeps of it; neither that half nor
            X of down is counted.
        positions: Rows of a table of learned positions, 0 without one.
    """

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: int
    vocab: int
    tied: bool
    dtype_bytes: int
    projections: tuple[Projection, ...]
    norm_columns: int
    gated: bool = True
    activation_kept: int = 1
    positions: int = 0

    @property
    def query(self) -> int:
        """Columns of the queries of all heads."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Columns of the keys, or of the values, of all heads."""
        return self.kv_heads * self.head_dim

    @property
    def layer_parameters(self) -> int:
        """Weights in the linears of one layer."""
        return sum(linear.inputs * linear.outputs for linear in self.projections)

    @property
    def parameters(self) -> int:
        """Weights of the model, but for norms and biases, which are below 0.1%."""
        tables = (1 if self.tied else 2) * self.vocab + self.positions
        return self.layers * self.layer_parameters + tables * self.hidden

    @classmethod
    def from_config(cls, config: Mapping[str, object], dtype: str | None = None) -> ModelShape:
        """Read a model's ``config.json``.

        Window, softcap and rotary settings are not read: a sliding window makes attention cheaper
        than predicted. An unknown ``model_type`` is taken to have Llama's seven linears.

        Args:
            config: The parsed file.
            dtype: What the run computes in; the config's own where None.

        Raises:
            PlanError: A field is missing or of a wrong kind (all are named), or the model has
                experts.
        """
        experts = [key for key in _EXPERTS if config.get(key)]
        if experts:
            raise PlanError(
                f"model config: {experts[0]} is {config[experts[0]]!r}; allowed: dense decoders. "
                "The default cost model knows no experts: measure one."
            )
        family = str(config.get("model_type", ""))
        sizes = _sizes(config)
        columns = {
            "h": sizes["hidden"],
            "q": sizes["heads"] * sizes["head_dim"],
            "k": sizes["kv_heads"] * sizes["head_dim"],
            "i": sizes["intermediate"],
        }
        norms = columns["h"] * (4 if family in _FOUR_NORMS else 2)
        norms += columns["q"] + columns["k"] if family in _HEAD_NORMS else 0
        return cls(
            **sizes,
            tied=bool(config.get("tie_word_embeddings", family in _TIED)),
            dtype_bytes=_dtype_bytes(config, dtype),
            projections=_projections(_LINEARS.get(family, _LLAMA), columns),
            gated=family not in _UNGATED,
            activation_kept=_activation_kept(config, family),
            norm_columns=norms,
            positions=_size(config, "n_positions") if family == "gpt2" else 0,
        )


def _activation_kept(config: Mapping[str, object], family: str) -> int:
    names = ("hidden_act", "activation_function", "hidden_activation")
    found = next((config[name] for name in names if config.get(name)), None)
    activation = found or _DEFAULT_ACTIVATION.get(family)
    own = 4 if activation in _WRITTEN_OUT else 1
    return own if family in _UNGATED or activation in _FUSED else own + 1


def _sizes(config: Mapping[str, object]) -> dict[str, int]:
    keys = {
        name: next((key for key in known if config.get(key) is not None), "")
        for name, known in _KEYS.items()
    }
    family = config.get("model_type")
    optional = ["kv_heads", "head_dim", *(["intermediate"] if family == "gpt2" else [])]
    missing = [" or ".join(_KEYS[n]) for n, key in keys.items() if not key and n not in optional]
    if missing:
        raise PlanError(
            f"model config: {', '.join(missing)} missing; allowed: the config.json of a causal LM "
            "(of a model with several parts, its text_config)."
        )
    sizes = {name: _size(config, key) for name, key in keys.items() if key}
    sizes.setdefault("intermediate", 4 * sizes["hidden"])
    sizes.setdefault("kv_heads", sizes["heads"])
    if "head_dim" not in sizes and sizes["hidden"] % sizes["heads"]:
        raise _wrong(
            keys["heads"], sizes["heads"], f"a divisor of {sizes['hidden']} ({keys['hidden']})"
        )
    sizes.setdefault("head_dim", sizes["hidden"] // sizes["heads"])
    if sizes["heads"] % sizes["kv_heads"]:
        allowed = f"a divisor of {sizes['heads']} ({keys['heads']})"
        raise _wrong(keys["kv_heads"], sizes["kv_heads"], allowed)
    return sizes


def _size(config: Mapping[str, object], key: str) -> int:
    value = config.get(key)
    # type(), not isinstance: JSON's true is an int to Python.
    if type(value) is not int or value < 1:
        raise _wrong(key, value, "an integer of at least 1")
    return value


def _dtype_bytes(config: Mapping[str, object], dtype: str | None) -> int:
    found = dtype or config.get("dtype") or config.get("torch_dtype")
    if found is None:
        raise PlanError(
            f"model config: dtype or torch_dtype missing; allowed: {', '.join(_BYTES)}. Name the "
            "run's dtype."
        )
    if found not in _BYTES:
        raise _wrong("dtype", found, ", ".join(_BYTES))
    return _BYTES[str(found)]


def _projections(formula: str, columns: Mapping[str, int]) -> tuple[Projection, ...]:
    def count(term: str) -> int:
        return sum(int(part[:-1] or 1) * columns[part[-1]] for part in term.split("+"))

    parts = (linear.partition(":") for linear in formula.split())
    return tuple(
        Projection(name, *(count(term) for term in ends.split(">"))) for name, _, ends in parts
    )


def _wrong(where: str, found: object, allowed: str) -> PlanError:
    return PlanError(f"model config: {where} is {found!r}; allowed: {allowed}.")
