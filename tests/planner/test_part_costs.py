"""The formula for what a layer holds, beside what the runtime really keeps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorafusion.adapters.bank import AdapterBank
from lorafusion.adapters.lora import LoraConfig
from lorafusion.kernels.layout import AdapterLayout, Segment
from lorafusion.kernels.native import attention_calls
from lorafusion.models.load import load_base
from lorafusion.models.stage import Stage
from lorafusion.planner.cost import Counts
from lorafusion.planner.devices import find_device
from lorafusion.planner.part_costs import Setup, layer_cost
from lorafusion.planner.shape import ModelShape

RANK = 8


def kept_bytes(folder: Path, dtype: str) -> float:
    """Bytes per token that a stage's forward leaves for the backward, without the weights."""
    base = load_base(str(folder), dtype)
    stage, bank = Stage(base), AdapterBank(base.model)
    config = LoraConfig(r=RANK, lora_dropout=0.1)
    adapter = bank.add(config, bank.match("all-linear"), seed=0)
    lengths = [30, 21]
    segment = Segment(adapter.slot, 0, 1, range(2), lengths)
    layout = AdapterLayout.build([segment], bank.modules([adapter.slot]), training=True)
    weights = {
        tensor.untyped_storage().data_ptr()
        for tensor in (*base.model.parameters(), *adapter.parameters().values())
    }
    kept: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        stage(torch.arange(sum(lengths)), layout)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / sum(lengths)


FAMILIES: dict[str, dict[str, object]] = {
    "llama": {},
    "gpt2": {},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    # One op for its activation, where GPT-2's is written out; its two norms are over 64 columns.
    "starcoder2": {"num_key_value_heads": 2},
}
# Factors that LayerNorm and the norms of heads keep on top of two a row, in float32 numbers.
MORE_FACTORS = {"llama": 0, "gpt2": 2, "qwen3": 4 + 2, "starcoder2": 2}


def make_base(folder: Path, family: str, layers: int) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4}
    sizes |= {"num_hidden_layers": layers, "vocab_size": 96, "n_inner": 160} | FAMILIES[family]
    config = AutoConfig.for_model(family, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize(("dtype", "loops"), [("float32", False), ("float32", True)])
def test_a_layer_keeps_what_the_formula_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, dtype: str, loops: bool
) -> None:
    if not loops:
        monkeypatch.setattr(attention_calls, "takes_all", lambda *_: False)
    elif not attention_calls.takes_all(torch.zeros(1)):
        pytest.skip("the loops are not built")
    folders = [make_base(tmp_path / f"{layers}", family, layers) for layers in (2, 3)]
    shape = ModelShape.from_config(json.loads((folders[0] / "config.json").read_text()), dtype)
    device = replace(find_device("cpu"), packed_attention=loops)
    held = layer_cost(shape, device, Setup()).activation
    predicted = held(Counts(tokens=1, token_ranks=RANK)) + 4 * MORE_FACTORS[family]
    found = kept_bytes(folders[1], dtype) - kept_bytes(folders[0], dtype)
    assert found == predicted
