"""Several adapters in one training batch: each row as if its adapter were trained alone."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from torch.utils.checkpoint import checkpoint
from transformers import LlamaForCausalLM

from lorafusion.errors import KernelError
from lorafusion.kernels.patch_peft import adapter_rows, patch_peft, patch_report, unpatch_peft
from lorafusion.kernels.patch_peft.rows import layout_of
from tests.kernels.peft_models import (
    add,
    assert_same,
    batch,
    gradients,
    llama,
    lora,
    one,
    step,
    summed_loss,
)

ROWS = ["default", "other", "default", None]


def two_adapters(folder, *, dropout=0.0, patch=True):
    """Ranks, targets and scales differ."""
    model = llama(folder, lora(r=4, lora_dropout=dropout))
    add(model, "other", lora(r=2, lora_alpha=5, target_modules=["q_proj", "v_proj", "up_proj"]))
    model.set_requires_grad(["default", "other"])
    if patch:
        patch_peft(model)
    return model


def sums(model, rows):
    """The sum of each row's own loss, each run alone in PEFT, and the gradients."""
    total, pieces = 0.0, []
    for number, name in enumerate(rows):
        if name is None:
            with model.disable_adapter():
                logits, loss = summed_loss(model, one(batch(len(rows)), number))
        else:
            model.set_adapter(name)
            model.set_requires_grad(["default", "other"])
            logits, loss = summed_loss(model, one(batch(len(rows)), number))
            loss.backward()
        total += loss.item()
        pieces.append(logits.detach())
    return torch.cat(pieces), gradients(model), total


@pytest.mark.parametrize(
    "rows", [ROWS, ["other", "other", "default", "default"], [None, "other", None, "other"]]
)
def test_each_row_as_if_alone(tiny_base, rows):
    logits, wanted, total = sums(two_adapters(tiny_base, patch=False), rows)
    model = two_adapters(tiny_base)
    with adapter_rows(model, rows):
        y, loss = summed_loss(model, batch())
        loss.backward()
    assert loss.item() == pytest.approx(total, rel=1e-12)
    assert_same((y.detach(), gradients(model)), (logits, wanted), within=1e-12)
    names = {name.split(".")[-2] for name in wanted}
    assert names == {row for row in rows if row}
    assert not patch_report(model).seen


def test_rows_of_one_adapter_that_are_apart(tiny_base):
    """A slot may not come twice in a layout: each run has its own, and gradients add up."""
    layout = layout_of((3, 2, 4), torch.device("cpu"))
    assert (layout.segment_slots, layout.segment_starts) == ((0, 1, 2), (0, 3, 5, 9))
    model = two_adapters(tiny_base)
    inputs = batch()
    order = torch.tensor([0, 2, 1, 3])
    results = []
    for rows, index in ((ROWS, torch.arange(4)), ([ROWS[i] for i in order], order)):
        model.zero_grad()
        with adapter_rows(model, rows):
            y, loss = summed_loss(model, {name: t[index] for name, t in inputs.items()})
        loss.backward()
        results.append((y.detach()[index.argsort()], gradients(model)))
    assert_same(*results, within=1e-12)


def test_what_a_neighbour_has_does_not_matter(tiny_base):
    """Not one bit of a row's logits or gradient; here even a NaN next to it."""
    found = []
    for spoil in (False, True):
        model = two_adapters(tiny_base)
        if spoil:
            for name, parameter in model.named_parameters():
                if ".other." in name:
                    parameter.data.fill_(float("nan"))
        with adapter_rows(model, ["default", "default", "other", "other"]):
            y, _ = summed_loss(model, batch())
        y[:2].sum().backward()
        mine = {n: g for n, g in gradients(model).items() if ".default." in n}
        found.append((y[:2].detach(), mine))
    assert_same(*found, within=0)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("backward_inside", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradient_checkpointing(tiny_base, reentrant, backward_inside, dropout):
    """The recomputation sees the rows and the masks of the forward."""
    results = []
    for recompute in (False, True):
        model = two_adapters(tiny_base, dropout=dropout)
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        torch.manual_seed(3)
        with adapter_rows(model, ROWS):
            y, loss = summed_loss(model, batch())
            if backward_inside:
                loss.backward()
        if not backward_inside:
            loss.backward()
        results.append((y.detach(), gradients(model)))
        kept = [vars(m)["_gradient_checkpointing_func"] for m in model.modules() if recompute
                and "_gradient_checkpointing_func" in vars(m)]  # fmt: skip
        assert not [f for f in kept if type(f).__name__ == "_Carrying"]
        assert bool(kept) == recompute
    assert_same(results[1], results[0], within=1e-12)


def test_a_recomputation_that_has_lost_its_rows(tiny_base):
    """With checkpointing of one's own the backward must run in the block: it is not wrong."""
    model = two_adapters(tiny_base)
    layer = model.base_model.model.model.layers[0].mlp
    x = torch.randn(4, 3, 32, dtype=torch.float64, requires_grad=True)
    with adapter_rows(model, ROWS):
        y = checkpoint(layer, x, use_reentrant=False)
        y.sum().backward()
        y = checkpoint(layer, x, use_reentrant=False)
    with pytest.raises(KernelError, match="recomputed in the backward without the rows"):
        y.sum().backward()
    checkpoint(layer, x, use_reentrant=False).sum().backward()


def own_forward(model):
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    layer.forward = layer.forward


@pytest.mark.parametrize(
    ("change", "rows", "message"),
    [
        (unpatch_peft, ROWS, r"q_proj \(Linear\) cannot be routed by row; .* patch_peft\(model\)"),
        (None, ["default", "nobody", 3], "no adapter 3, nobody; there are: default, other"),
        (own_forward, ROWS, "a forward of its own on .*layers.1.mlp.up_proj"),
        (None, "default", "allowed: a list, a name for each row"),
        (lambda m: m.merge_adapter(), ROWS, "unmerge_adapter"),
        (lambda m: m.set_adapter("other"), ROWS, r"default is frozen.*set_requires_grad\(\['def"),
    ],
)
def test_what_is_refused(tiny_base, change, rows, message):
    model = two_adapters(tiny_base)
    if change:
        change(model)
    with pytest.raises(KernelError, match=message):
        with adapter_rows(model, rows):
            pytest.fail("entered")


def test_what_a_forward_refuses(tiny_base):
    model = two_adapters(tiny_base)
    with adapter_rows(model, ["default", "other"]):
        with pytest.raises(
            KernelError, match="has 4 rows in dimension 0, but batch_adapters has 2"
        ):
            model(**batch())
        with pytest.raises(KernelError, match="in an adapter_rows block already"):
            with adapter_rows(model, ["default"]):
                pytest.fail("entered")
    model(**batch())
    with pytest.raises(ZeroDivisionError):
        with adapter_rows(model, ["default"]):
            raise ZeroDivisionError
    model.eval()(**batch())
    with adapter_rows(model, ["default", "other"]):
        with pytest.raises(KernelError, match="`adapter_names` was passed too"):
            model(**batch(2), adapter_names=["default", "other"])


def test_frozen_ones(tiny_base):
    model = two_adapters(tiny_base)
    model.set_adapter("other")
    with adapter_rows(model, ROWS, frozen=["default"]):
        model(**batch()).loss.backward()
    assert {name.split(".")[-2] for name in gradients(model)} == {"other"}
    with torch.no_grad(), adapter_rows(model, ROWS):
        model(**batch())
    model.eval()
    with adapter_rows(model, ROWS):
        model(**batch())


def test_copies_of_whole_modules_are_refused(tiny_base):
    model = llama(tiny_base, lora(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    patch_peft(model)
    with pytest.raises(KernelError, match=r"copy of .*lm_head \(modules_to_save"):
        with adapter_rows(model, ["default"]):
            pytest.fail("entered")


def test_another_model_in_the_block(tiny_base):
    """A second model, such as a teacher, goes its own way, and may have rows of its own."""
    model, teacher = two_adapters(tiny_base), two_adapters(tiny_base)
    wanted = teacher(**batch()).logits
    with adapter_rows(model, ROWS):
        mine = model(**batch()).logits
        assert torch.equal(teacher(**batch()).logits, wanted)
        with adapter_rows(teacher, ["other"] * 4):
            assert not torch.equal(teacher(**batch()).logits, wanted)
            assert torch.equal(model(**batch()).logits, mine)
        with model.disable_adapter():
            base = model(**batch()).logits
    with model.disable_adapter():
        assert torch.equal(model(**batch()).logits, base)


def test_a_layer_that_falls_back_is_routed_by_peft(tiny_base):
    """A hook makes it fall back; rows, and gradients to both adapters, stay right."""
    results = []
    for hook in (False, True):
        model = two_adapters(tiny_base)
        if hook:
            for name, module in model.named_modules():
                if name.endswith("q_proj.base_layer"):
                    module.register_forward_hook(lambda *_: None)
        with adapter_rows(model, ROWS):
            results.append(step(model, batch()))
        assert bool(patch_report(model).seen) == hook
    assert_same(results[1], results[0], within=1e-12)


def test_five_steps_of_both_at_once(tiny_base):
    """AdamW over both adapters: each ends where it ends when it trains alone."""
    together = two_adapters(tiny_base)
    rows = ["default", "other", "other", "default"]
    optimizer = torch.optim.AdamW([p for p in together.parameters() if p.requires_grad], lr=1e-2)
    for number in range(5):
        with adapter_rows(together, rows):
            _, loss = summed_loss(together, batch(seed=number))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name in ("default", "other"):
        alone = two_adapters(tiny_base, patch=False)
        alone.set_adapter(name)
        mine = [number for number, row in enumerate(rows) if row == name]
        optimizer = torch.optim.AdamW([p for p in alone.parameters() if p.requires_grad], lr=1e-2)
        for number in range(5):
            inputs = {key: tensor[mine] for key, tensor in batch(seed=number).items()}
            _, loss = summed_loss(alone, inputs)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        for key, theirs in alone.named_parameters():
            if f".{name}." in key:
                ours = together.get_parameter(key)
                assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-11), key


def test_compiled(tiny_base):
    """The block breaks the graph, and is honoured on both sides of a compilation."""
    model = two_adapters(tiny_base)
    mlp = model.base_model.model.model.layers[0].mlp
    compiled = torch.compile(mlp, backend="eager")
    x = torch.randn(4, 3, 32, dtype=torch.float64)
    plain = mlp(x)
    with adapter_rows(model, ROWS):
        routed = mlp(x)
    assert not torch.allclose(plain, routed)
    assert torch.allclose(compiled(x), plain)
    with adapter_rows(model, ROWS):
        assert torch.allclose(compiled(x), routed)
    assert torch.allclose(compiled(x), plain)


def test_adapters_of_transformers(tiny_base):
    """Its own add_adapter puts no PeftModel around the base."""
    torch.manual_seed(0)
    model = LlamaForCausalLM.from_pretrained(tiny_base, dtype=torch.float64)
    model.add_adapter(LoraConfig(target_modules=["q_proj"], init_lora_weights=False), "a")
    report = patch_peft(model)
    assert len(report.fused) == 2
    with adapter_rows(model, ["a", None, "a", None]):
        model(**batch()).loss.backward()
    assert len(gradients(model)) >= 4
