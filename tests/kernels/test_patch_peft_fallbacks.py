"""What falls back to PEFT's forward: a case of each reason, and that the result is PEFT's."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import IA3Config, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch import nn
from transformers import LlamaForCausalLM

from lorafusion.kernels.patch_peft import Fallback, patch_peft, patch_report, reasons
from tests.kernels.peft_models import LLAMA_LINEARS, assert_same, batch, gpt2, llama, lora, step

Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"


def layer_of(model):
    return model.get_submodule(Q_PROJ)


def set_config(**settings):
    return lambda folder: llama(folder, lora(**settings))


def change(edit, **settings):
    def make(folder):
        model = llama(folder, lora(**settings))
        edit(layer_of(model))
        return model

    return make


def embedding(folder):
    return llama(folder, lora(target_modules=["embed_tokens"]))


def replaced(layer):
    old = type(layer).forward
    layer.forward = lambda x, *args, **kwargs: old(layer, x, *args, **kwargs)


class Subclass(nn.Linear):
    pass


def subclass(layer):
    layer.base_layer.__class__ = Subclass


def hook_on(*path):
    return lambda layer: layer.get_submodule(".".join(path)).register_forward_hook(lambda *_: None)


def odd_factor(layer):
    layer.lora_A["default"].__class__ = Subclass


def odd_dropout(layer):
    layer.lora_dropout["default"] = nn.AlphaDropout(0.0)


def scaling_of_a_tensor(layer):
    layer.scaling["default"] = torch.tensor(layer.scaling["default"], dtype=torch.float64)


def trained_bias(folder):
    return gpt2(lora(bias="lora_only", fan_in_fan_out=True, target_modules=["c_attn"]))


# Reason -> models that have a layer which falls back for it. The report tells before any forward.
STANDING = {
    Fallback.LAYER: [embedding],
    Fallback.REPLACED: [change(replaced)],
    Fallback.BASE: [change(subclass)],
    Fallback.VARIANT: [set_config(use_dora=True)],
    Fallback.LORA_BIAS: [set_config(lora_bias=True)],
    Fallback.FACTORS: [change(odd_factor)],
    Fallback.HOOKS: [
        change(hook_on("base_layer")),
        change(hook_on("lora_A", "default")),
        change(hook_on("lora_B", "default")),
        change(hook_on("lora_dropout", "default")),
    ],
    Fallback.TRAINED_BASE: [
        change(lambda layer: layer.base_layer.weight.requires_grad_()),
        trained_bias,
    ],
    Fallback.DROPOUT: [change(odd_dropout)],
    Fallback.SCALING: [change(scaling_of_a_tensor)],
}
# Those that need a machine or a number format that is not here: asked of the check itself.
ELSEWHERE = {Fallback.DTYPE, Fallback.DEVICE, Fallback.TRITON}
# What only a forward can tell; SEVERAL's test is among those of dropout.
IN_A_CALL = {
    Fallback.SEVERAL,
    Fallback.SMALL,
    Fallback.INPUT,
    Fallback.CASTING,
    Fallback.COMPILED,
    Fallback.TRANSFORM,
}
CASES = [(why, make) for why, makes in STANDING.items() for make in makes]


def test_every_reason_has_a_test():
    assert {*STANDING, *ELSEWHERE, *IN_A_CALL} == set(Fallback)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("why", "make"), CASES, ids=[why.name for why, _ in CASES])
def test_what_the_report_tells(tiny_base, why, make):
    theirs, ours = make(tiny_base), make(tiny_base)
    report = patch_peft(ours)
    assert set(report.fallbacks) == {why}
    parts = report.fallbacks[why]
    assert len(parts) + len(report.fused) == len(report.parts)
    assert f"{len(parts):6}  {why.name:<13} {why.value}; such as {parts[0].layer}" in str(report)
    assert not report.seen
    torch.manual_seed(1)
    wanted = step(theirs, batch())
    torch.manual_seed(1)
    assert_same(step(ours, batch()), wanted, within=1e-12)
    seen = patch_report(ours)
    if why not in (Fallback.LAYER, Fallback.REPLACED):  # those never come to our forward
        assert seen.seen == {why: len(parts)}
        assert f"Calls that have fallen back:\n{len(parts):6}  {why.name}" in str(seen)


def test_a_layer_of_another_method(tiny_base):
    base = LlamaForCausalLM.from_pretrained(tiny_base)
    settings = {"target_modules": ["q_proj"], "feedforward_modules": []}
    report = patch_peft(get_peft_model(base, IA3Config(**settings)))
    assert list(report.fallbacks) == [Fallback.LAYER]
    assert "0 of 2 adapter parts on 2 layers" in str(report)


def test_a_report_without_fallbacks(tiny_base):
    text = str(patch_peft(llama(tiny_base)))
    assert text == (
        f"{LLAMA_LINEARS} of {LLAMA_LINEARS} adapter parts on {LLAMA_LINEARS} layers run on "
        "lorafusion's op; the others on PEFT's forward."
    )


def seen_in(layer):
    return dict(layer.fallen_back or {})


def test_inputs(tiny_base):
    """Another type, width or more arguments: PEFT's result, or PEFT's own error."""
    theirs, ours = llama(tiny_base), llama(tiny_base)
    patch_peft(ours)
    layer, peft = layer_of(ours), layer_of(theirs)
    for x in (
        torch.zeros(2, 32),
        torch.zeros(2, 31, dtype=torch.float64),
        torch.ones(2, 32).long(),
    ):
        with pytest.raises(RuntimeError) as wanted:
            peft(x)
        with pytest.raises(RuntimeError) as found:
            layer(x)
        assert str(found.value) == str(wanted.value)
    x = torch.randn(2, 32, dtype=torch.float64)
    with pytest.raises(TypeError, match="unexpected keyword"):
        layer(x, strange=1)
    assert seen_in(layer) == {Fallback.INPUT: 4}
    assert torch.allclose(layer(x, alora_offsets=None), peft(x))
    assert seen_in(layer) == {Fallback.INPUT: 4}


def test_few_rows(tiny_base):
    """Without gradients alone; and not where elements are dropped, which may be recomputed."""
    model = llama(tiny_base, lora(lora_dropout=0.5))
    patch_peft(model)
    layer, x = layer_of(model), torch.randn(31, 32, dtype=torch.float64)
    with torch.no_grad():
        layer(x)
        model.eval()
        assert not seen_in(layer)
        wanted = layer(torch.cat([x, x[:1]]))[:31]
        assert not seen_in(layer)
        assert torch.allclose(layer(x), wanted)
        assert seen_in(layer) == {Fallback.SMALL: 1}
    layer(x)
    assert seen_in(layer) == {Fallback.SMALL: 1}


def test_casting_is_off(tiny_base):
    theirs, ours = llama(tiny_base), llama(tiny_base)
    patch_peft(ours)
    with disable_input_dtype_casting(theirs), disable_input_dtype_casting(ours):
        assert_same(step(ours, batch()), step(theirs, batch()), within=0)
    assert patch_report(ours).seen == {Fallback.CASTING: LLAMA_LINEARS}


def test_tracing_and_transforms(tiny_base):
    model = llama(tiny_base)
    patch_peft(model)
    layer, x = layer_of(model), torch.randn(3, 32, dtype=torch.float64)
    traced = torch.jit.trace(layer, x)
    assert torch.allclose(traced(torch.cat([x, x])), layer(torch.cat([x, x])))
    assert Fallback.COMPILED in seen_in(layer)
    found = torch.func.vmap(layer)(x)
    assert torch.allclose(found, layer(x))
    assert Fallback.TRANSFORM in seen_in(layer)


class Elsewhere:
    """A tensor's description, of a device that is not here."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = torch.device(device), dtype


@pytest.mark.parametrize(
    ("device", "dtype", "triton", "why"),
    [
        ("cpu", torch.float8_e4m3fn, True, Fallback.DTYPE),
        ("cpu", torch.int8, True, Fallback.DTYPE),
        ("cuda", torch.float64, True, Fallback.DTYPE),
        ("cpu", torch.float64, True, None),
        ("mps", torch.float16, True, Fallback.DEVICE),
        ("meta", torch.float16, True, Fallback.DEVICE),
        ("cuda", torch.bfloat16, False, Fallback.TRITON),
        ("cuda", torch.bfloat16, True, None),
        ("cpu", torch.bfloat16, False, None),
    ],
)
def test_machines_and_number_formats(monkeypatch, device, dtype, triton, why):
    monkeypatch.delenv("LORAFUSION_BACKEND", raising=False)
    monkeypatch.setattr(reasons, "_has_triton", lambda: triton)
    assert reasons._place_fallback(Elsewhere(device, dtype)) is why


def test_what_changes_later_is_seen(tiny_base):
    """A hook that comes after patching, and goes."""
    model = llama(tiny_base)
    patch_peft(model)
    handle = layer_of(model).base_layer.register_forward_hook(lambda *_: None)
    assert list(patch_report(model).fallbacks) == [Fallback.HOOKS]
    model(**batch())
    handle.remove()
    twin = copy.deepcopy(model)
    model(**batch())
    assert patch_report(model).seen == patch_report(twin).seen == {Fallback.HOOKS: 1}
    assert not patch_report(model).fallbacks
