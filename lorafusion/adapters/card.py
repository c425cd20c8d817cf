"""The README of an adapter folder: facts of the run and how to use the result, nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from lorafusion.adapters.lora import LoraConfig
from lorafusion.adapters.vllm import max_lora_rank


@dataclass(frozen=True)
class AdapterFacts:
    """What the README says. ``None`` means not measured, and is left out.

    Attributes:
        name: The job's name.
        base_model: Hub id or folder of the base.
        dataset: The training data, as the job file names it.
        config: The adapter's settings.
        settings: Further settings by name, in the order to show them.
        steps: Optimizer steps taken.
        tokens: Tokens of training samples seen.
        loss_first: Training loss of the first step, nats per trained token.
        loss_last: The same of the last step.
        eval_before: Loss on held-out rows before training.
        eval_after: The same after training.
    """

    name: str
    base_model: str
    dataset: str
    config: LoraConfig
    settings: Mapping[str, str | int | float | None]
    steps: int
    tokens: int
    loss_first: float | None = None
    loss_last: float | None = None
    eval_before: float | None = None
    eval_after: float | None = None


def adapter_card(facts: AdapterFacts) -> str:
    """The README as Markdown with the front matter that the Hugging Face hub reads."""
    adapter = _settings(facts.config)
    given = {name: value for name, value in facts.settings.items() if value is not None}
    return "\n".join(
        [
            *_front_matter(facts.base_model),
            f"# {facts.name}",
            "",
            f"A LoRA adapter for `{facts.base_model}`, trained with LoRAFusion.",
            "",
            *_table(("what", "value"), {"base": facts.base_model, "dataset": facts.dataset}),
            *_table(("setting", "value"), {**adapter, **given}),
            *_table(("result", "value"), _results(facts)),
            *_usage(facts.base_model, facts.config),
            "",
        ]
    )


def exported_card(name: str, *, base_model: str, source: str, config: LoraConfig) -> str:
    """The README of an adapter that was made from another one's folder, ``source``.

    Args:
        name: Its title.
        base_model: Hub id or folder of the base.
        source: The folder that it was made from.
        config: Its settings.
    """
    return "\n".join(
        [
            *_front_matter(base_model),
            f"# {name}",
            "",
            f"A LoRA adapter for `{base_model}`, the same function as `{source}` with one rank and "
            "one alpha for all modules, which is what vLLM reads.",
            "",
            *_table(("setting", "value"), _settings(config)),
            *_usage(base_model, config),
            "",
        ]
    )


def _settings(config: LoraConfig) -> dict[str, object]:
    found = config.model_dump(exclude={"target_modules"})
    targets = config.target_modules
    found["target_modules"] = targets if isinstance(targets, str) else ", ".join(targets)
    return {name: value for name, value in found.items() if value is not None and value != {}}


def _front_matter(base_model: str) -> list[str]:
    # The hub refuses a card whose base_model is not a hub id, so a folder is named below only.
    is_hub_id = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", base_model) is not None
    base = [f"base_model: {json.dumps(base_model)}"] if is_hub_id else []
    return ["---", *base, "library_name: peft", "tags:", "- lora", "- lorafusion", "---", ""]


def _results(facts: AdapterFacts) -> dict[str, str | int]:
    losses = {
        "training loss, first step": facts.loss_first,
        "training loss, last step": facts.loss_last,
        "held-out loss before training": facts.eval_before,
        "held-out loss after training": facts.eval_after,
    }
    shown = {name: f"{loss:.4f}" for name, loss in losses.items() if loss is not None}
    return {"steps": facts.steps, "tokens": facts.tokens, **shown}


def _table(head: tuple[str, str], rows: Mapping[str, object]) -> list[str]:
    def cell(value: object) -> str:
        return str(value).replace("|", "\\|").replace("\n", " ")

    lines = [f"| {cell(name)} | {cell(value)} |" for name, value in rows.items()]
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *lines, ""]


def _usage(base_model: str, config: LoraConfig) -> list[str]:
    rank = max_lora_rank(config.r)
    vllm = f"vLLM serves it with `--enable-lora --max-lora-rank {rank}`."
    if config.rank_pattern or config.alpha_pattern:
        vllm = (
            "vLLM ignores `rank_pattern` and `alpha_pattern`. `lorafusion export --adapter "
            "path/to/this/folder --output DIR` writes a folder that it reads right."
        )
    return [
        "## Use",
        "",
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f"base = AutoModelForCausalLM.from_pretrained({json.dumps(base_model)})",
        'model = PeftModel.from_pretrained(base, "path/to/this/folder")',
        "```",
        "",
        "```bash",
        'lorafusion generate --adapter path/to/this/folder "a prompt"',
        "```",
        *([] if rank is None else ["", vllm]),
    ]
