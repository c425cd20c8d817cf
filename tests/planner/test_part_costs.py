"""The formula for what a layer holds, beside what the runtime really keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lorafusion.adapters.bank import AdapterBank
from lorafusion.adapters.lora import LoraConfig
from lorafusion.kernels.attention import cpu
from lorafusion.kernels.layout import AdapterLayout, Segment
from lorafusion.models.load import load_base
from lorafusion.models.stage import Stage
from lorafusion.planner.cost import Counts
from lorafusion.planner.devices import find_device
from lorafusion.planner.part_costs import Setup, layer_cost
from lorafusion.planner.shape import ModelShape
from tests.conftest import make_llama

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


@pytest.mark.parametrize(("dtype", "loops"), [("float32", False), ("bfloat16", True)])
def test_a_layer_keeps_what_the_formula_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, loops: bool
) -> None:
    if not loops:
        monkeypatch.setattr(cpu, "runs_on", lambda *_: False)
    elif not cpu.runs_on(*[torch.zeros(1, 1, 1, 8, dtype=torch.bfloat16)] * 3):
        pytest.skip("the loops are not built")
    for layers in (2, 3):
        make_llama(tmp_path / f"{layers}", layers=layers)
    shape = ModelShape.from_config(json.loads((tmp_path / "2" / "config.json").read_text()), dtype)
    held = layer_cost(shape, find_device("cpu"), Setup()).activation
    predicted = held(Counts(tokens=1, token_ranks=RANK))
    # The loops give their output to o_proj; torch's attention keeps one of its own.
    predicted -= shape.dtype_bytes * shape.query if loops else 0
    found = kept_bytes(tmp_path / "3", dtype) - kept_bytes(tmp_path / "2", dtype)
    assert found == predicted
