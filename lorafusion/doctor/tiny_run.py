"""Train two jobs on a tiny random Llama, and each alone in plain torch. Runs in a child process."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lorafusion.adapters.lora import LoraModule
from lorafusion.adapters.targets import match_targets
from lorafusion.data.order import epoch_order
from lorafusion.jobs.schema import JobSpec, RunSpec
from lorafusion.launch.local import StopRequest, run_local
from lorafusion.models.load import load_base
from lorafusion.module_names import module_names
from lorafusion.training.events import Events

_WORDS = "one two three four five six seven eight".split()
# Prompt and answer by the words' numbers; the answer and the end of text are trained.
_ROWS = [([0, 1, 2], [3]), ([4, 5], [6, 7, 1]), ([2], [5, 5]), ([7, 0, 3, 6], [4])]
_HELD_OUT = [([1, 6], [2, 0]), ([3], [7])]
_END = len(_WORDS)


def train_and_compare() -> dict[str, Any]:
    """The greatest relative difference of a loss, training or held-out, and the seconds it took."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="lorafusion-doctor.") as name:
        folder = Path(name)
        _write_base(folder / "base")
        spec = _run_spec(folder)
        result = run_local(spec, output=folder / "out", events=Events(), stop=StopRequest())
        worst = 0.0
        for job, ours in zip(spec.jobs, result.jobs, strict=True):
            if ours.state != "succeeded":
                raise RuntimeError(f"job {job.name} {ours.state}: {ours.reason}")
            found = (ours.loss_first, ours.loss_last, ours.eval_before, ours.eval_after)
            for loss, expected in zip(found, _plain(folder / "base", job), strict=True):
                assert loss is not None
                worst = max(worst, abs(loss - expected) / abs(expected))
    return {"worst": worst, "seconds": time.perf_counter() - started}


def _run_spec(folder: Path) -> RunSpec:
    for name, rows in (("rows", _ROWS), ("held_out", _HELD_OUT)):
        lines = [json.dumps({"prompt": _text(p), "completion": _text(c)}) for p, c in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    shared: dict[str, Any] = {
        "dataset": {"path": str(folder / "rows.jsonl")},
        "eval": {"dataset": {"path": str(folder / "held_out.jsonl")}},
        "learning_rate": 0.01,
        "lr_scheduler": "constant",
        "max_grad_norm": None,
        "global_batch_size": 2,
        "max_steps": 2,
    }
    jobs = [
        {"name": "narrow", "adapter": {"r": 2}, **shared},
        {"name": "wide", "adapter": {"r": 5, "target_modules": ["q_proj"]}, "seed": 1, **shared},
    ]
    run = {"base_model": str(folder / "base"), "dtype": "float64", "jobs": jobs}
    return RunSpec.model_validate(run)


def _plain(base: Path, job: JobSpec) -> tuple[float, float, float, float]:
    """First and last loss, held-out loss before and after: one job, a sample at a time."""
    model = load_base(str(base), "float64").model
    parameters = _add_adapter(model, job)
    optimizer = torch.optim.AdamW(parameters, lr=job.learning_rate, weight_decay=0.0)
    order = epoch_order(len(_ROWS), seed=job.seed, epoch=0).tolist()
    before = _loss(model, _HELD_OUT).item()
    losses: list[float] = []
    for step in range(2):
        loss = _loss(model, [_ROWS[i] for i in order[2 * step : 2 * step + 2]])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses[0], losses[1], before, _loss(model, _HELD_OUT).item()


def _add_adapter(model: nn.Module, job: JobSpec) -> list[torch.Tensor]:
    """Hooks that add s · (X Aᵀ) Bᵀ to the linears' outputs; returns all A and B."""
    config: Any = job.adapter
    parameters: list[torch.Tensor] = []
    for name in match_targets(module_names(model), config.target_modules):
        linear: Any = model.get_submodule(name)
        own = LoraModule(config, linear.weight, name=name, seed=job.seed).parameters()
        a, b = own["lora_A"], own["lora_B"]

        def add(_: Any, inputs: Any, y: torch.Tensor, a: Any = a, b: Any = b) -> torch.Tensor:
            return y + config.scale * (inputs[0] @ a.T) @ b.T

        linear.register_forward_hook(add)
        parameters += [a, b]
    return parameters


def _loss(model: Any, rows: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Mean over the trained tokens of all rows."""
    total = torch.zeros((), dtype=torch.float64)
    for prompt, answer in rows:
        ids = torch.tensor([[*prompt, *answer, _END]])
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        total = total + F.cross_entropy(logits, ids[0, len(prompt) :], reduction="sum")
    return total / sum(len(answer) + 1 for _, answer in rows)


def _text(words: list[int]) -> str:
    return "".join(f" {_WORDS[i]}" for i in words)


def _write_base(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*_WORDS, "<end>", "<unknown>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        eos_token_id=_END,
        initializer_range=0.2,  # the default .02 leaves attention nearly uniform
    )
    LlamaForCausalLM(config).save_pretrained(folder)
