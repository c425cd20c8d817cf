"""Which bases are refused, and why: what a config says, before any weight is read.

What a config does not say is seen when a stage is built: :mod:`lorafusion.models.check`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lorafusion.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_CAUSAL_ENDINGS = ("ForCausalLM", "LMHeadModel")
_LAYER_TYPES = {"full_attention", "sliding_attention"}
_ALIBI_MODELS = {"bloom", "mpt"}


def check_config(config: PreTrainedConfig, base_model: str) -> None:
    """Refuse a base that cannot be run on packed samples, or not without a change of results.

    Raises:
        ModelError: What it is that does not fit.
    """
    for rule in _RULES:
        reason = rule(config)
        if reason is not None:
            raise ModelError(f"base_model {base_model!r} {reason}")


def longest_sample(config: PreTrainedConfig) -> int | None:
    """The most tokens of a sample that the base can take, None where its config names no limit.

    Longrope has one set of frequencies up to the length of its first training and another above.
    transformers chooses by the longest position in the whole microbatch, so packed samples agree
    with the same samples alone only where all of them use the first set.
    """
    limits = [getattr(config, "max_position_embeddings", None)]
    for rope in rotary_settings(config):
        if rope.get("rope_type") == "longrope":
            limits.append(rope.get("original_max_position_embeddings"))
    known = [limit for limit in limits if limit is not None]
    return min(known, default=None)


def rotary_settings(config: PreTrainedConfig) -> Iterator[Mapping[str, Any]]:
    """The settings of rotary positions: one for all layers, or one for each type of layer."""
    parameters: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    yield from nested or [parameters]


def _quantised(config: Any) -> str | None:
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else settings.quant_method
    return (
        f"is quantised ({getattr(method, 'value', method)}), and only plain weights are run; "
        "allowed: float32, bfloat16 and float16 checkpoints. Choose the base that it was made from."
    )


def _encoder_decoder(config: Any) -> str | None:
    if not getattr(config, "is_encoder_decoder", False):
        return None
    return "has an encoder and a decoder; allowed: decoder-only causal LMs. Choose another base."


def _multimodal(config: Any) -> str | None:
    names = _architectures(config)
    wrapped = config.get_text_config() is not config
    if not wrapped and not any(name.endswith("ForConditionalGeneration") for name in names):
        return None
    return (
        f"({', '.join(names) or type(config).__name__}) wraps a text model together with others; "
        "allowed: the text model by itself. Save its text model as a folder of its own (for Gemma "
        "3: Gemma3ForCausalLM), or choose a text-only base."
    )


def _no_causal_lm(config: Any) -> str | None:
    names = _architectures(config)
    if any(name.endswith(_CAUSAL_ENDINGS) for name in names):
        return None
    return (
        f"is no causal LM: its config names {', '.join(names) or 'no'} architectures; allowed: one "
        f"that ends in {' or '.join(_CAUSAL_ENDINGS)}. Choose a text generation model."
    )


def _cross_attention(config: Any) -> str | None:
    if not getattr(config, "add_cross_attention", False):
        return None
    return "has cross attention, which needs an encoder; allowed: self-attention only."


def _alibi(config: Any) -> str | None:
    inner = getattr(config, "attn_config", None)
    has = getattr(config, "alibi", False) or getattr(inner, "alibi", False)
    if not has and config.model_type not in _ALIBI_MODELS:
        return None
    return (
        "uses ALiBi, positions that are added to the attention scores over the whole microbatch; "
        "allowed: rotary or learned positions. Choose another base."
    )


def _stateful(config: Any) -> str | None:
    model_class = _model_class(config)
    if not getattr(model_class, "_is_stateful", False):
        return None
    return (
        f"({model_class.__name__}) keeps a state from token to token (state space or recurrent "
        "layers), which would run on from one sample of a microbatch into the next; allowed: "
        "models of attention layers. Choose another base."
    )


def _layer_types(config: Any) -> str | None:
    kinds: set[str] = set(getattr(config, "layer_types", None) or ())
    if getattr(config, "attention_chunk_size", None):
        kinds.add("chunked_attention")
    others = sorted(kinds - _LAYER_TYPES)
    if not others:
        return None
    return (
        f"has layers of type {', '.join(others)}, which packed samples do not have here; allowed: "
        f"{', '.join(sorted(_LAYER_TYPES))}. Choose another base."
    )


def _bidirectional(config: Any) -> str | None:
    if not getattr(config, "use_bidirectional_attention", None):
        return None
    return "lets tokens see later ones (use_bidirectional_attention); allowed: causal attention."


def _rotary(config: Any) -> str | None:
    kinds = [str(rope.get("rope_type")) for rope in rotary_settings(config)]
    dynamic = [kind for kind in kinds if "dynamic" in kind]
    if not dynamic:
        return None
    return (
        f"uses {dynamic[0]} rotary positions, whose frequencies depend on the longest sample of a "
        "microbatch, so jobs would change each other's results; allowed: default, linear, llama3, "
        "yarn, proportional, and longrope up to its original length. Choose another base."
    )


def _attention(config: Any) -> str | None:
    model_class = _model_class(config)
    if model_class is None or getattr(model_class, "_supports_attention_backend", False):
        return None
    return (
        f"({model_class.__name__}) has attention code of its own that transformers cannot "
        "exchange, so samples cannot be packed; allowed: models of transformers' attention "
        "interface (docs/models.md). Choose another base."
    )


def _architectures(config: Any) -> list[str]:
    return getattr(config, "architectures", None) or []


def _model_class(config: Any) -> Any:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    return MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)


_RULES: tuple[Callable[[Any], str | None], ...] = (
    _quantised,
    _encoder_decoder,
    _multimodal,
    _no_causal_lm,
    _cross_attention,
    _alibi,
    _stateful,
    _layer_types,
    _bidirectional,
    _rotary,
    _attention,
)
