"""Tiny models with LoRA adapters of PEFT, in pairs: one to patch, one to hold it against."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

LLAMA_LINEARS = 14  # two layers of q, k, v, o, gate, up, down
ALPHA = 3  # over r: no power of two, so that scaling rounds


def lora(r: int = 4, **settings: Any) -> LoraConfig:
    """A config with B that is not zero."""
    wanted = {"target_modules": "all-linear", "lora_alpha": ALPHA, "init_lora_weights": False}
    return LoraConfig(r=r, **{**wanted, **settings})


def llama(folder: Any, config: LoraConfig | None = None, *, dtype: torch.dtype = torch.float64):
    """The base in ``folder`` with one adapter, the same for the same config."""
    torch.manual_seed(0)
    base = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    return get_peft_model(base, config or lora()).train()


def gpt2(config: LoraConfig, *, dtype: torch.dtype = torch.float64):
    """A base of Conv1D, which stores its weights as [in, out]."""
    torch.manual_seed(0)
    shape = GPT2Config(
        vocab_size=320, n_positions=32, n_embd=16, n_layer=2, n_head=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    base = GPT2LMHeadModel(shape).to(dtype)
    return get_peft_model(base, config).train()


def add(model: Any, name: str, config: LoraConfig, seed: int = 1) -> None:
    """One more adapter, the same for the same seed."""
    torch.manual_seed(seed)
    model.add_adapter(name, config)


def batch(rows: int = 4, length: int = 7, seed: int = 5) -> dict[str, torch.Tensor]:
    """Token ids, some of them padding on the right, and labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 320, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, length - row % 3 :] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def one(inputs: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    """One row of a batch."""
    return {name: tensor[row : row + 1] for name, tensor in inputs.items()}


def summed_loss(model: Any, inputs: dict[str, torch.Tensor]):
    """Logits, and the sum of the rows' mean losses; transformers' own loss is in float32."""
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    losses = [
        torch.nn.functional.cross_entropy(row[:-1], labels[1:], ignore_index=-100)
        for row, labels in zip(logits, inputs["labels"], strict=True)
    ]
    return logits, torch.stack(losses).sum()


def step(model: Any, inputs: dict[str, torch.Tensor]):
    """Logits, and the gradients by name."""
    model.zero_grad()
    logits, loss = summed_loss(model, inputs)
    loss.backward()
    return logits.detach(), gradients(model)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """By parameter, of those that have one."""
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(found: Any, wanted: Any, *, within: float) -> None:
    """Logits and every gradient, each relative to its own norm."""
    (y, gradients), (right_y, right) = found, wanted
    assert gradients.keys() == right.keys() and right
    pairs = {"logits": (y, right_y), **{name: (gradients[name], right[name]) for name in right}}
    for name, (mine, theirs) in pairs.items():
        assert theirs.norm() > 0, name
        off = float((mine - theirs).double().norm() / theirs.double().norm())
        assert off <= within, f"{name} differs by {off:.1e}"
