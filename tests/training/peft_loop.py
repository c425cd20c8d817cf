"""The oracle: one job trained the plain way, with PEFT's own model and torch's own parts.

One sample at a time, no packing, no kernels and no training code of ours. Only the initial
weights and the order of an epoch are taken over, since those are ours to choose.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import peft
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler

from lorafusion.data.order import epoch_order
from lorafusion.jobs.schema import JobSpec

Sample = tuple[list[int], list[bool]]


def train_with_peft(
    base: Path, spec: JobSpec, initial: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Losses and gradient norms step by step, and the final parameters under our names."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    if spec.adapter.init_from is not None:
        model = peft.PeftModel.from_pretrained(model, spec.adapter.init_from, is_trainable=True)
    else:
        model = peft.get_peft_model(model, peft_config(spec))
    model = model.to(dtype)  # PEFT makes float32 factors under a float64 base
    parameters = {
        name.removeprefix("base_model.model.").replace(".default.weight", ""): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    assert parameters.keys() == initial.keys()
    for name, parameter in parameters.items():
        if spec.adapter.init_from is not None:
            assert torch.equal(parameter, initial[name]), f"PEFT starts from another {name}"
        parameter.data.copy_(initial[name])
    samples = read_samples(base, spec)
    batches = list(batches_of(len(samples), spec))
    optimizer = torch.optim.AdamW(
        parameters.values(),
        lr=spec.learning_rate,
        betas=(spec.adam_beta1, spec.adam_beta2),
        eps=spec.adam_epsilon,
        weight_decay=spec.weight_decay,
    )
    warmup = spec.warmup_steps
    schedule = get_scheduler(
        "constant_with_warmup" if spec.lr_scheduler == "constant" else spec.lr_scheduler,
        optimizer,
        math.ceil(spec.warmup_ratio * len(batches)) if warmup is None else warmup,
        len(batches),
    )
    losses, norms = [], []
    for batch in batches:
        trained_tokens = sum(sum(samples[i][1][1:]) for i in batch)
        total = 0.0
        for i in batch:
            ids, trained = samples[i]
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
            labels = torch.where(torch.tensor(trained), torch.tensor(ids), -100)[1:]
            loss = F.cross_entropy(logits, labels, reduction="sum") / trained_tokens
            loss.backward()
            total += loss.item()
        limit = math.inf if spec.max_grad_norm is None else spec.max_grad_norm
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters.values(), limit)))
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(total)
    return losses, norms, {name: p.detach().clone() for name, p in parameters.items()}


def peft_config(spec: JobSpec) -> peft.LoraConfig:
    """The adapter's settings in PEFT's class."""
    adapter = spec.adapter
    targets = adapter.target_modules
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.r,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=0.0,
        use_rslora=adapter.use_rslora,
        rank_pattern=dict(adapter.rank_pattern),
        alpha_pattern=dict(adapter.alpha_pattern),
        target_modules=targets if isinstance(targets, str) else list(targets),
    )


def read_samples(base: Path, spec: JobSpec) -> list[Sample]:
    """Tokens of each row, and which are trained: the completion and the EOS behind it."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    samples: list[Sample] = []
    for line in Path(spec.dataset.path).read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer(row["prompt"])["input_ids"]
        answer = tokenizer(row["completion"])["input_ids"] + [tokenizer.eos_token_id]
        samples.append((prompt + answer, [False] * len(prompt) + [True] * len(answer)))
    return samples


def batches_of(rows: int, spec: JobSpec) -> Iterator[list[int]]:
    """Whole epochs, each in its own order, its last batch as short as it comes out."""
    step, size = 0, spec.global_batch_size
    for epoch in range(spec.num_epochs or 10**6):
        order = epoch_order(rows, seed=spec.seed, epoch=epoch).tolist()
        for start in range(0, rows, size):
            if step == spec.max_steps:
                return
            step += 1
            yield order[start : start + size]
