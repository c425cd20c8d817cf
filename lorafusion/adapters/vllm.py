"""The conditions under which vLLM loads an adapter, and with which options.

Read in vLLM's ``lora/peft_helper.py``, ``lora/lora_model.py``, ``config/lora.py`` and its table of
supported models (main, 2026); vLLM itself is not asked.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lorafusion.adapters.folder import (
    FACTORS,
    KEY_PREFIX,
    StoredTensor,
    bad_tensor,
    read_data,
    read_fields,
    stored_tensors,
)
from lorafusion.adapters.refused import PLAIN_INITS, UNDERSTOOD_FIELDS
from lorafusion.errors import AdapterError

# What --max-lora-rank may be (16 if it is not given); it must be at least the adapter's rank.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
PATTERNS = ("rank_pattern", "alpha_pattern")
# The conditions that one rank and alpha for all modules meets, see ``uniform``.
FOLDABLE = (*PATTERNS, "shapes")
# Architectures of the bases that we test, by whether vLLM serves LoRA on them.
_WITH_LORA = frozenset(
    f"{family}ForCausalLM"
    for family in ("Llama", "Qwen2", "Qwen3", "Mistral", "Gemma2", "Gemma3", "Phi3", "Olmo2")
)
_WITHOUT_LORA = frozenset({"GPT2LMHeadModel", "GPTNeoXForCausalLM"})
# vLLM fuses these by itself, from the adapters of the single projections. Where the base has a
# fused linear of its own (Phi-3), an adapter on that is taken as it is.
_FUSED = {"qkv_proj": ("Phi3ForCausalLM",), "gate_up_proj": ("Phi3ForCausalLM",)}
_EMBEDDINGS = frozenset({"embed_tokens", "lm_head", "wte", "wpe", "embed_in", "embed_out"})


class Condition(NamedTuple):
    """One condition, whether it holds, and why."""

    name: str
    holds: bool
    reason: str


def max_lora_rank(rank: int) -> int | None:
    """The smallest ``--max-lora-rank`` that takes an adapter of ``rank``; None if none does."""
    return next((allowed for allowed in RANKS if allowed >= rank), None)


def serve_command(folder: Path, *, base_model: str, rank: int, name: str) -> str:
    """The command that serves an adapter whose conditions hold."""
    words = ["vllm", "serve", base_model or "BASE_MODEL", "--enable-lora"]
    words += ["--max-lora-rank", str(max_lora_rank(rank))]
    return shlex.join([*words, "--lora-modules", f"{name}={folder.resolve()}"])


def check_folder(folder: Path, architecture: str | None) -> list[Condition]:
    """Every condition, for an adapter folder that need not be one that we can load.

    Args:
        folder: With an ``adapter_config.json``.
        architecture: The base's, such as LlamaForCausalLM; None if it is not known.

    Raises:
        AdapterError: The folder has no readable ``adapter_config.json``.
    """
    fields = read_fields(folder)
    found = [*_fields(fields), *_rank(fields), _architecture(architecture)]
    try:
        tensors = stored_tensors(folder, read_data(folder))
    except AdapterError as error:
        return [*found, Condition("weights", False, str(error))]
    return [*found, *_tensors(fields, tensors, architecture)]


def base_architecture(base_model: str) -> str | None:
    """What the config of a base names, if it is a folder or in the hub's cache; else None."""
    path = Path(base_model) / "config.json"
    if not Path(base_model).is_dir():
        from huggingface_hub import try_to_load_from_cache

        try:
            found = try_to_load_from_cache(base_model, "config.json")
        except ValueError:  # not of the form of a hub id
            return None
        if not isinstance(found, str):
            return None
        path = Path(found)
    try:
        architectures: Any = json.loads(path.read_text("utf-8")).get("architectures")
        return str(architectures[0])
    except (OSError, ValueError, AttributeError, TypeError, IndexError):
        return None


def _fields(fields: Mapping[str, Any]) -> Iterator[Condition]:
    kind = fields.get("peft_type")
    yield Condition("peft_type", kind == "LORA", f"{kind}; vLLM loads LORA")
    missing = [name for name in ("r", "lora_alpha", "target_modules") if fields.get(name) is None]
    reason = f"{', '.join(missing)} missing, which vLLM requires" if missing else "all there"
    yield Condition("r, lora_alpha, target_modules", not missing, reason)
    bias = fields.get("bias", "none")
    yield Condition("bias", bias == "none" and not fields.get("lora_bias"), _bias(fields))
    saved = fields.get("modules_to_save")
    reason = f"{saved}: vLLM refuses whole modules" if saved else "none"
    yield Condition("modules_to_save", not saved, reason)
    dora = bool(fields.get("use_dora"))
    yield Condition("use_dora", not dora, "vLLM has no DoRA" if dora else "false")
    for name in PATTERNS:
        reason = "none"
        if fields.get(name):
            reason = (
                "vLLM ignores it and would scale by the one r and lora_alpha; `lorafusion export "
                "--output` folds it in"
            )
        yield Condition(name, not fields.get(name), reason)
    yield _other_fields(fields)


def _bias(fields: Mapping[str, Any]) -> str:
    if fields.get("lora_bias"):
        return "lora_bias is true: vLLM has no bias beside B"
    bias = fields.get("bias", "none")
    return str(bias) if bias == "none" else f"{bias}: vLLM refuses trained biases"


def _other_fields(fields: Mapping[str, Any]) -> Condition:
    named = {"bias", "lora_bias", "modules_to_save", "use_dora", *PATTERNS}
    strange = [
        name
        for name, value in fields.items()
        if value and name not in UNDERSTOOD_FIELDS and name not in named
    ]
    if fields.get("init_lora_weights", True) not in PLAIN_INITS:
        strange.append(f"init_lora_weights {fields['init_lora_weights']!r} (shifts the base)")
    reason = f"{', '.join(strange)}: vLLM does not carry this out" if strange else "none"
    return Condition("settings that vLLM ignores", not strange, reason)


def _rank(fields: Mapping[str, Any]) -> Iterator[Condition]:
    rank = fields.get("r")
    if not isinstance(rank, int) or rank < 1:
        yield Condition("rank", False, f"{rank}; vLLM needs a whole number of at least 1")
        return
    option = max_lora_rank(rank)
    reason = f"{rank} is above {RANKS[-1]}, the most that vLLM takes"
    if option is not None:
        reason = f"{rank}, served with --max-lora-rank {option}"
    yield Condition("rank", option is not None, reason)


def _architecture(architecture: str | None) -> Condition:
    if architecture in _WITHOUT_LORA:
        return Condition("base", False, f"vLLM serves {architecture} without LoRA only")
    if architecture in _WITH_LORA:
        return Condition("base", True, f"{architecture}")
    what = architecture or "not at hand here"
    return Condition("base", True, f"{what}; see vLLM's list of models with LoRA")


def _tensors(
    fields: Mapping[str, Any], tensors: Mapping[str, StoredTensor], architecture: str | None
) -> Iterator[Condition]:
    bad = bad_tensor(dict(tensors)) if tensors else "no tensor in it"
    yield Condition("weights", bad is None, bad or f"{len(tensors)} tensors, all finite")
    modules = [key[len(KEY_PREFIX) : -len(e)] for key in tensors for e in FACTORS if _is(key, e)]
    others = [key for key in tensors if not any(_is(key, ending) for ending in FACTORS)]
    reason = f"{others[0]} is not A or B of a linear" if others else "A and B of linears only"
    yield Condition("tensor names", not others, reason)
    yield _shapes(fields, tensors)
    yield _modules(modules, architecture)


def _is(key: str, ending: str) -> bool:
    return key.startswith(KEY_PREFIX) and key.endswith(ending)


def _shapes(fields: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> Condition:
    rank = fields.get("r")
    for key, tensor in tensors.items():
        for ending, index in FACTORS.items():
            if _is(key, ending) and (len(tensor.shape) != 2 or tensor.shape[index] != rank):
                reason = f"{key} is {list(tensor.shape)}, and r is {rank}"
                return Condition("shapes", False, f"{reason}: vLLM would scale it by another rank")
    return Condition("shapes", True, f"every A and B of rank {rank}")


def _modules(modules: list[str], architecture: str | None) -> Condition:
    for name in modules:
        last = name.rsplit(".", 1)[-1]
        if last in _EMBEDDINGS:
            reason = f"{name}: only some of vLLM's models take LoRA on embeddings or the head"
            return Condition("modules", False, reason)
        if last in _FUSED and architecture not in (None, *_FUSED[last]):
            reason = (
                f"{name} is fused, and vLLM wants the base's own projections one by one "
                "(q_proj, k_proj, v_proj, gate_proj, up_proj)"
            )
            return Condition("modules", False, reason)
    ends = ", ".join(dict.fromkeys(name.rsplit(".", 1)[-1] for name in modules))
    return Condition("modules", True, f"{ends or 'none'}")
