from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from lorafusion.adapters.bank import AdaptedLinear, AdapterBank, ResidentAdapter
from lorafusion.adapters.lora import LoraConfig
from lorafusion.errors import AdapterError
from lorafusion.kernels.binding import bind_layout
from lorafusion.kernels.hashing import module_key
from lorafusion.kernels.layout import AdapterLayout, Segment

QV = LoraConfig(r=3, target_modules=("q_proj", "v_proj"))
ALL = LoraConfig(r=2)


@pytest.fixture
def model(tiny_base: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(tiny_base).requires_grad_(False)


def add(bank: AdapterBank, config: LoraConfig, seed: int = 0) -> ResidentAdapter:
    return bank.add(config, bank.match(config.target_modules), seed=seed)


def test_the_lowest_free_slot_is_taken(model: nn.Module) -> None:
    bank = AdapterBank(model)
    assert [add(bank, QV).slot for _ in range(4)] == [0, 1, 2, 3]
    bank.remove(2)
    bank.remove(0)
    assert [add(bank, QV).slot for _ in range(3)] == [0, 2, 4]


def test_a_removed_adapter_is_gone(model: nn.Module) -> None:
    bank = AdapterBank(model)
    add(bank, QV)
    add(bank, ALL)
    bank.remove(1)
    assert all(set(by.forms) == {0} for by in bank.modules([0]).values())
    with pytest.raises(KeyError):
        bank.modules([1])


def test_initial_weights_do_not_depend_on_slot_or_neighbours(model: nn.Module) -> None:
    bank = AdapterBank(model)
    alone = add(bank, QV, seed=4).parameters()
    add(bank, ALL, seed=9)
    beside = add(bank, QV, seed=4).parameters()
    assert alone.keys() == beside.keys()
    assert all(torch.equal(alone[name], beside[name]) for name in alone)


def test_no_two_tensors_share_memory(model: nn.Module) -> None:
    """Also where seed and settings are the same: an update of one must not reach another."""
    bank = AdapterBank(model)
    tensors = [
        tensor
        for adapter in (add(bank, ALL), add(bank, ALL), add(bank, QV))
        for tensor in adapter.parameters().values()
    ]
    tensors += list(model.parameters())
    storages = [tensor.untyped_storage() for tensor in tensors]
    spans = sorted((s.data_ptr(), s.data_ptr() + s.nbytes()) for s in storages)
    assert all(stop <= start for (_, stop), (start, _) in pairwise(spans))
    assert all(t._base is None for t in tensors), "views of something larger"


def test_forms_are_the_live_tensors_by_module_and_slot(model: nn.Module) -> None:
    bank = AdapterBank(model)
    first, second = add(bank, QV, seed=1), add(bank, ALL, seed=2)
    modules = bank.modules([first.slot, second.slot])
    assert set(modules) == set(bank.linears)
    name = "model.layers.1.self_attn.q_proj"
    assert modules[name].key == module_key(name)
    assert set(modules[name].forms) == {0, 1}
    assert modules[name].forms[0].A is first.parameters()[f"{name}.lora_A"]
    assert set(modules["model.layers.1.mlp.up_proj"].forms) == {1}
    assert set(bank.modules([first.slot])) == set(bank.match(("q_proj", "v_proj")))


def test_the_base_keeps_its_modules_and_its_output(model: nn.Module) -> None:
    tokens = torch.arange(12)[None]
    expected = model(input_ids=tokens).logits
    weights = [parameter.data_ptr() for parameter in model.parameters()]
    bank = AdapterBank(model)
    adapter = add(bank, QV)
    for tensor in adapter.parameters().values():
        tensor.data.fill_(1.0)
    assert torch.equal(model(input_ids=tokens).logits, expected), "adapters run outside of a layout"
    assert [parameter.data_ptr() for parameter in model.parameters()] == weights
    wrapped = [name for name, m in model.named_modules() if isinstance(m, AdaptedLinear)]
    assert tuple(wrapped) == bank.match(QV.target_modules)
    add(bank, QV)
    assert not any(isinstance(m.base, AdaptedLinear) for m in model.modules() if hasattr(m, "base"))
    assert "lm_head" not in bank.linears


def test_load_overwrites_in_place(model: nn.Module) -> None:
    bank = AdapterBank(model)
    source, target = add(bank, QV, seed=1), add(bank, QV, seed=2)
    for tensor in source.parameters().values():
        tensor.data.add_(0.5)
    before = [tensor.data_ptr() for tensor in target.parameters().values()]
    target.load(source.parameters())
    assert [tensor.data_ptr() for tensor in target.parameters().values()] == before
    wanted, found = source.parameters(), target.parameters()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert all(t.is_leaf and t.requires_grad for t in target.parameters().values())


@pytest.mark.parametrize("other", [ALL, LoraConfig(r=4, target_modules=("q_proj", "v_proj"))])
def test_load_refuses_what_does_not_fit(other: LoraConfig, model: nn.Module) -> None:
    bank = AdapterBank(model)
    target, source = add(bank, QV), add(bank, other)
    before = {name: tensor.detach().clone() for name, tensor in target.parameters().items()}
    with pytest.raises(AdapterError, match="do not fit"):
        target.load(source.parameters())
    assert all(torch.equal(before[name], t) for name, t in target.parameters().items())


def test_a_conv1d_is_a_linear_like_any_other() -> None:
    """Same output and gradients as an ``nn.Linear`` with its weight transposed."""
    config = GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=2, n_positions=32)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).double().requires_grad_(False)
    block = model.transformer.h[0]
    conv = block.attn.c_attn
    linear = nn.Linear(8, 24, dtype=torch.float64)
    linear.weight.data, linear.bias.data = conv.weight.T.clone(), conv.bias.clone()
    bank = AdapterBank(model)
    assert bank.fan_in_fan_out
    adapter = add(bank, LoraConfig(r=3, target_modules=("c_attn",)))
    a, b = adapter.parameters().values()
    assert (a.shape, b.shape) == ((3, 8), (24, 3))
    b.data.normal_()
    layout = AdapterLayout.build([Segment(0, 1, 1, [0], [5])], bank.modules([0]), training=True)
    x = torch.randn(1, 5, 8, dtype=torch.float64, requires_grad=True)
    with bind_layout(layout):
        found = block.attn.c_attn(x)
    factors = [tensor.detach().clone().requires_grad_() for tensor in (a, b)]
    expected = linear(x) + adapter.config.scale * (x @ factors[0].T) @ factors[1].T
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(found)
    ours = torch.autograd.grad((found * weights).sum(), [x, a, b])
    theirs = torch.autograd.grad((expected * weights).sum(), [x, *factors])
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-11, atol=1e-12)


def test_plain_linears_are_not_transposed(model: nn.Module) -> None:
    bank = AdapterBank(model)
    assert not bank.fan_in_fan_out
    assert bank.linears_and_head == (*bank.linears, "lm_head")
