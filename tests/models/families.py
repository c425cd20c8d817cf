"""A tiny random model of each family, and what is special about it.

Windows, caps and frequencies are chosen so that they bind in samples of a few rows. Biases and
norms are random: one that is left out is seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

WINDOW = 4
SMALL: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "initializer_range": 0.2,  # the default .02 leaves attention nearly uniform
}


@dataclass(frozen=True)
class Family:
    """One row of the table in docs/models.md.

    Attributes:
        title: As people call it.
        architecture: The class of transformers; its config class is found through it.
        settings: Config, beside those of ``SMALL``.
        special: What it does beside a Llama.
        suffixes: Targets by the ends of their names.
        regex: Targets by a regular expression.
    """

    title: str
    architecture: str
    settings: Mapping[str, Any]
    special: str
    suffixes: tuple[str, ...] = ("q_proj", "v_proj", "down_proj")
    regex: str = r"model\.layers\.[02]\.(self_attn|mlp)\..*_proj"
    without: tuple[str, ...] = field(default=())

    def config(self, **changes: Any) -> Any:
        """The tiny config."""
        small = {name: value for name, value in SMALL.items() if name not in self.without}
        model_class = getattr(transformers, self.architecture)
        return model_class.config_class(**{**small, **self.settings, **changes})

    def write(self, folder: Path, *, seed: int = 0, **changes: Any) -> None:
        """Write a random model of it, in float32."""
        config = self.config(**changes)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = getattr(transformers, self.architecture)(config)
            for parameter in model.parameters():
                if parameter.ndim == 1:  # norms and biases
                    parameter.data += 0.3 * torch.randn_like(parameter)
        model.save_pretrained(folder)


GQA: dict[str, Any] = {"num_key_value_heads": 2}
HEAD_DIM: dict[str, Any] = {"head_dim": 12}  # not hidden_size / heads
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]

FAMILIES: dict[str, Family] = {
    "llama": Family(
        "Llama", "LlamaForCausalLM", {**GQA, "attention_bias": True, "mlp_bias": True}, "-"
    ),
    "qwen2": Family(
        "Qwen2",
        "Qwen2ForCausalLM",
        {**GQA, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        "biases on q, k, v; sliding window above a layer",
    ),
    "qwen3": Family(
        "Qwen3",
        "Qwen3ForCausalLM",
        {**GQA, **HEAD_DIM, "tie_word_embeddings": True},
        "norms on q and k; own head size",
    ),
    "mistral": Family(
        "Mistral",
        "MistralForCausalLM",
        {**GQA, "sliding_window": WINDOW},
        "sliding window in all layers",
    ),
    "gemma2": Family(
        "Gemma 2",
        "Gemma2ForCausalLM",
        {
            **GQA,
            **HEAD_DIM,
            "sliding_window": WINDOW,
            "layer_types": ALTERNATING,
            "query_pre_attn_scalar": 5,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
        "scaled embeddings; softcaps on scores and logits; own scale of scores; "
        "sliding window in every second layer; norms around both halves",
    ),
    "gemma3": Family(
        "Gemma 3",
        "Gemma3ForCausalLM",
        {
            **GQA,
            **HEAD_DIM,
            "sliding_window": WINDOW,
            "layer_types": ALTERNATING,
            "query_pre_attn_scalar": 5,
            "final_logit_softcapping": 3.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        },
        "as Gemma 2, but norms on q and k instead of a cap on scores; "
        "rotary positions per type of layer",
    ),
    "phi3": Family(
        "Phi-3",
        "Phi3ForCausalLM",
        {
            **GQA,
            "sliding_window": WINDOW,
            "original_max_position_embeddings": 128,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0, 1.5, 2.0, 3.0],
                "long_factor": [4.0, 5.0, 6.0, 7.0],
                "original_max_position_embeddings": 128,
            },
        },
        "one linear for q, k, v, one for gate and up; sliding window; longrope",
        suffixes=("qkv_proj", "down_proj"),
    ),
    "gpt2": Family(
        "GPT-2",
        "GPT2LMHeadModel",
        {"scale_attn_by_inverse_layer_idx": True},
        "`Conv1D` linears; learned positions; layer norms with biases",
        suffixes=("c_attn", "mlp.c_proj"),
        regex=r"transformer\.h\.[02]\.(attn|mlp)\.c_.*",
        without=("intermediate_size",),
    ),
    "gpt_neox": Family(
        "GPT-NeoX",
        "GPTNeoXForCausalLM",
        {"rotary_pct": 0.5},
        "both halves of a layer at once; q, k, v in one linear; rotary on a part of each head",
        suffixes=("query_key_value", "dense_4h_to_h"),
        regex=r"gpt_neox\.layers\.[02]\.(attention|mlp)\.dense.*",
    ),
    "olmo2": Family(
        "OLMo 2",
        "Olmo2ForCausalLM",
        {**GQA},
        "norms after each half; norms over all of q and k",
    ),
}
