"""Dropout of a patched model: its statistics, where its randomness comes from, recomputation."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from lorafusion.kernels.patch_peft import adapter_rows, patch_peft, patch_report
from tests.kernels.peft_models import add, assert_same, batch, gradients, llama, lora, step


def layer_of(model):
    return model.base_model.model.model.layers[0].self_attn.q_proj


def dropping(folder, p=0.25, *, patch=True, dtype=torch.float64):
    model = llama(folder, lora(r=4, lora_dropout=p), dtype=dtype)
    if patch:
        patch_peft(model)
    return model


def delta(layer, x):
    """What the adapter adds, as D(X) through factors that show D(X) itself."""
    return layer(x) - layer.base_layer(x)


def visible(layer):
    """A picks the first columns of X, and B passes them on: the delta is D(X) there."""
    for factor in (layer.lora_A["default"], layer.lora_B["default"]):
        torch.nn.init.eye_(factor.weight)
    layer.scaling["default"] = 1.0
    return layer


def test_statistics_are_those_of_peft(tiny_base):
    """Share kept, value kept, no pattern from row to row, column to column, or call to call."""
    p = 0.25
    x = torch.ones(400, 50, 32, dtype=torch.float64)
    for patch in (False, True):
        layer = visible(layer_of(dropping(tiny_base, p, patch=patch)))
        torch.manual_seed(1)
        with torch.no_grad():
            masks = [delta(layer, x).reshape(-1, 32)[:, :4] for _ in range(2)]
        values = masks[0].unique()
        kept = [(mask > 0.5).double() for mask in masks]
        assert float(values.max()) == pytest.approx(1 / (1 - p), rel=1e-12)
        count = kept[0].numel()
        sigma = (p * (1 - p) / count) ** 0.5
        assert abs(float(kept[0].mean()) - (1 - p)) < 5 * sigma
        spread = 5 * (p * (1 - p) / len(kept[0])) ** 0.5
        assert (kept[0].mean(0) - (1 - p)).abs().max() < spread, "columns"
        centred = [mask - mask.mean() for mask in kept]
        var = p * (1 - p)
        pairs = {
            "rows": (centred[0][1:], centred[0][:-1]),
            "columns": (centred[0][:, 1:], centred[0][:, :-1]),
            "samples": (centred[0][50:], centred[0][:-50]),
            "calls": (centred[0], centred[1]),
        }
        for name, (one, other) in pairs.items():
            assert abs(float((one * other).mean()) / var) < 5 / one.numel() ** 0.5, name


def test_layers_and_calls_differ_and_seeds_repeat(tiny_base):
    model = dropping(tiny_base)
    layers = [visible(block.self_attn.q_proj) for block in model.base_model.model.model.layers]
    x = torch.ones(64, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.manual_seed(2)
        first = [delta(layer, x) for layer in (*layers, *layers)]
        torch.manual_seed(2)
        again = [delta(layer, x) for layer in (*layers, *layers)]
        torch.manual_seed(3)
        others = [delta(layer, x) for layer in layers]
    for number, one in enumerate(first):
        assert torch.equal(one, again[number])
        for other in (*first[:number], *others):
            assert not torch.allclose(one, other, atol=1e-6)


def test_without_dropout_nothing_is_drawn(tiny_base):
    for model in (dropping(tiny_base, 0.0), dropping(tiny_base, 0.5).eval()):
        before = torch.get_rng_state()
        step(model, batch())
        assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(model.train()(**batch()).logits, model(**batch()).logits)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    assert torch.equal(model(**batch()).logits, model.eval()(**batch()).logits)


def test_the_gradient_is_that_of_the_mask(tiny_base):
    """Through visible masks: autograd through D(X) as the forward has shown it."""
    layer = layer_of(dropping(tiny_base, 0.4))
    x = torch.randn(6, 5, 32, dtype=torch.float64)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    kept = [a.data.clone(), b.data.clone()]
    # A as wide as the input, to read the whole mask with the key of one seed.
    layer.lora_A["default"].weight.data = torch.eye(32, dtype=torch.float64)
    layer.lora_B["default"].weight.data = torch.eye(32, dtype=torch.float64)
    scale, layer.scaling["default"] = layer.scaling["default"], 1.0
    torch.manual_seed(7)
    with torch.no_grad():
        factor = delta(layer, torch.ones_like(x))
    a.data, b.data = kept
    layer.scaling["default"] = scale
    assert factor.max() == pytest.approx(1 / 0.6, rel=1e-4)
    assert ((factor < 0.5) | (factor > 1.5)).all()
    torch.manual_seed(7)
    x.requires_grad_()
    y = layer(x)
    dy = torch.randn_like(y)
    found = torch.autograd.grad(y, [x, a, b], dy)
    again = layer.base_layer(x) + scale * ((x * factor) @ a.T @ b.T)
    wanted = torch.autograd.grad(again, [x, a, b], dy)
    for one, other in zip((y, *found), (again, *wanted), strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("of_transformers", [False, True])
def test_recomputed(tiny_base, reentrant, of_transformers):
    """The gradients of a recomputed forward are to the last bit those of one that is kept."""
    results = []
    for recompute in (False, True):
        model = dropping(tiny_base, 0.3, dtype=torch.float32)
        inputs = batch()
        if of_transformers:
            if recompute:
                model.gradient_checkpointing_enable({"use_reentrant": reentrant})
                model.enable_input_require_grads()
            torch.manual_seed(9)
            results.append(step(model, inputs))
        else:
            block = model.base_model.model.model.layers[0].mlp
            x = torch.linspace(-1, 1, 4 * 3 * 32).view(4, 3, 32).requires_grad_()
            torch.manual_seed(9)
            y = checkpoint(block, x, use_reentrant=reentrant) if recompute else block(x)
            (y * y).sum().backward()
            results.append((y.detach(), gradients(model) | {"x": x.grad}))
    assert_same(results[1], results[0], within=0)


def test_several_active_ones_fall_back(tiny_base):
    """PEFT draws a mask for each: one for all of them would be other statistics."""
    models = theirs, ours = [dropping(tiny_base, 0.3, patch=patch) for patch in (False, True)]
    for model in models:
        add(model, "other", lora(r=2))
        model.base_model.set_adapter(["default", "other"])
    torch.manual_seed(1)
    wanted = step(theirs, batch())
    torch.manual_seed(1)
    assert_same(step(ours, batch()), wanted, within=0)
    assert {why.name for why in patch_report(ours).seen} == {"SEVERAL"}
    ours.eval()(**batch())
    assert sum(patch_report(ours).seen.values()) == 14


def test_rows_of_one_batch_have_masks_of_their_own(tiny_base):
    model = dropping(tiny_base, 0.5)
    add(model, "other", lora(r=2))
    model.set_requires_grad(["default", "other"])
    layer = visible(layer_of(model))
    x = torch.ones(4, 3, 32, dtype=torch.float64)
    with torch.no_grad(), adapter_rows(model, ["default", None, "default", "default"]):
        shown = delta(layer, x)[..., :4]
    assert not shown[1].any()
    assert len({tuple(row.flatten().round().tolist()) for row in shown}) == 4
