"""Adapter folders of PEFT's making."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

MakeAdapter = Callable[..., Path]


@pytest.fixture
def make_adapter(tiny_base: Path, tmp_path: Path) -> MakeAdapter:
    """Writes an adapter of ``tiny_base`` with random A and B; returns its folder."""
    import peft
    from transformers import AutoModelForCausalLM

    def make(name: str = "source", **settings: Any) -> Path:
        given = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], **settings}
        config = peft.LoraConfig(**given, task_type="CAUSAL_LM")
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_base), config)
        generator = torch.Generator().manual_seed(3)
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.data.normal_(0, 0.2, generator=generator)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make
