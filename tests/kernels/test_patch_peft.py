"""A patched PEFT model computes what PEFT computes, and everything else of PEFT goes on working."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

import lorafusion
from lorafusion.errors import KernelError
from lorafusion.kernels.patch_peft import Fallback, patch_peft, patch_report, patched, unpatch_peft
from lorafusion.kernels.patch_peft import layer as patched_layer
from tests.kernels.peft_models import (
    LLAMA_LINEARS,
    add,
    assert_same,
    batch,
    gpt2,
    gradients,
    llama,
    lora,
    step,
    summed_loss,
)

WITHIN = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.fixture
def calls(monkeypatch):
    """How many calls the op has had."""
    seen = []
    op = patched_layer.lora_linear
    monkeypatch.setattr(patched_layer, "lora_linear", lambda *a: seen.append(a) or op(*a))
    return seen


@pytest.mark.parametrize("dtype", WITHIN, ids=str)
@pytest.mark.parametrize("rslora", [False, True])
def test_equal_to_peft(tiny_base, calls, dtype, rslora):
    config = lora(r=5, use_rslora=rslora)
    theirs, ours = llama(tiny_base, config, dtype=dtype), llama(tiny_base, config, dtype=dtype)
    report = patch_peft(ours)
    assert len(report.fused) == len(report.parts) == LLAMA_LINEARS
    assert_same(step(ours, batch()), step(theirs, batch()), within=WITHIN[dtype])
    assert len(calls) == LLAMA_LINEARS
    assert not patch_report(ours).seen


def test_a_base_of_conv1d(calls):
    config = lora(fan_in_fan_out=True, target_modules=["c_attn", "c_proj", "c_fc"])
    theirs, ours = gpt2(config), gpt2(config)
    assert not patch_peft(ours).fallbacks
    assert_same(step(ours, batch()), step(theirs, batch()), within=1e-12)
    assert len(calls) == 8


def test_five_steps_of_adamw(tiny_base):
    models = [llama(tiny_base), llama(tiny_base)]
    before = {name: p.detach().clone() for name, p in models[0].named_parameters()}
    patch_peft(models[1])
    losses = []
    for model in models:
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        for number in range(5):
            _, loss = summed_loss(model, batch(seed=number))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[5:] == pytest.approx(losses[:5], rel=1e-10)
    for (name, theirs), ours in zip(
        models[0].named_parameters(), models[1].parameters(), strict=True
    ):
        assert torch.equal(theirs, before[name]) != theirs.requires_grad
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-11), name


def test_merging_disabling_and_switching(tiny_base, calls):
    """In every state the same as PEFT's model in that state."""
    models = theirs, ours = llama(tiny_base), llama(tiny_base)
    patch_peft(ours)

    def same(within=1e-12):
        wanted, found = (model(**batch()).logits for model in models)
        assert (found - wanted).norm() <= within * wanted.norm()
        return found.detach()

    first = same()
    for model in models:
        add(model, "other", lora(r=3, target_modules=["q_proj", "down_proj"]))
    assert torch.equal(same(), first)
    for model in models:
        model.set_adapter("other")
    calls.clear()
    other = same()
    assert len(calls) == 4, "two linears of two layers"
    assert not torch.allclose(other, first)
    assert_same(step(ours, batch()), step(theirs, batch()), within=1e-12)

    with theirs.disable_adapter(), ours.disable_adapter():
        calls.clear()
        assert not torch.allclose(same(), other)
        assert not calls
    for model in models:
        model.merge_adapter()
    assert torch.allclose(same(), other) and not calls
    with theirs.disable_adapter(), ours.disable_adapter():
        same()
    for model in models:
        if model.base_model.model.model.layers[0].self_attn.q_proj.merged:
            model.unmerge_adapter()
    assert torch.allclose(same(), other) and calls

    for model in models:
        model.base_model.set_adapter(["default", "other"])
    calls.clear()
    both = same()
    assert len(calls) == LLAMA_LINEARS, "several active ones that drop nothing are one call"
    assert not torch.allclose(both, other)
    assert_same(step(ours, batch()), step(theirs, batch()), within=1e-12)

    for model in models:
        model.set_adapter("default")
        model.delete_adapter("other")
    assert torch.allclose(same(), first)
    for model in models:
        for module in model.modules():
            if hasattr(module, "set_scale"):
                module.set_scale("default", 0.5)
    assert not torch.allclose(same(), first)
    merged = ours.merge_and_unload()
    assert torch.allclose(merged(**batch()).logits, theirs(**batch()).logits)
    assert not [m for m in merged.modules() if isinstance(m, patched_layer.FusedLinear)]


def test_layers_of_adapters_that_come_later(tiny_base, calls):
    ours = llama(tiny_base, lora(target_modules=["q_proj"]))
    assert len(patch_peft(ours).fused) == 2
    add(ours, "wide", lora())
    ours.set_adapter("wide")
    ours(**batch())
    assert len(calls) == LLAMA_LINEARS
    assert len(patch_report(ours).fused) == LLAMA_LINEARS + 2


def test_saving_and_loading(tiny_base, tmp_path):
    theirs, ours = llama(tiny_base), llama(tiny_base)
    patch_peft(ours)
    for model, name in ((theirs, "theirs"), (ours, "ours")):
        model.save_pretrained(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "theirs").iterdir())
    assert "adapter_model.safetensors" in files
    for file in files:
        if file != "README.md":
            assert (tmp_path / "ours" / file).read_bytes() == (
                tmp_path / "theirs" / file
            ).read_bytes()
    base = LlamaForCausalLM.from_pretrained(tiny_base, dtype=torch.float64)
    again = PeftModel.from_pretrained(base, tmp_path / "ours")
    patch_peft(again)
    with torch.inference_mode():
        assert torch.equal(again(**batch()).logits, ours.eval()(**batch()).logits)
    ours.load_adapter(tmp_path / "theirs", "loaded")
    ours.set_adapter("loaded")
    assert torch.equal(ours(**batch()).logits, again(**batch()).logits)


def test_undoing(tiny_base, calls):
    model = llama(tiny_base)
    types, state = [type(m) for m in model.modules()], [vars(m).keys() for m in model.modules()]
    with patched(model) as report:
        assert len(report.fused) == LLAMA_LINEARS
        assert "FusedLinear" in repr(model)
        first = step(model, batch())
        patch_peft(model)
        assert_same(step(model, batch()), first, within=0)
    assert [type(m) for m in model.modules()] == types
    assert [vars(m).keys() for m in model.modules()] == state
    calls.clear()
    model(**batch())
    assert not calls
    patch_peft(model)
    with patched(model):
        pass
    model(**batch())
    assert calls, "patched before the block, and after it"
    unpatch_peft(model)
    unpatch_peft(model)
    assert [type(m) for m in model.modules()] == types


def test_no_adapter_to_patch(tiny_base):
    with pytest.raises(KernelError, match="LlamaForCausalLM has no adapter layer of PEFT"):
        patch_peft(LlamaForCausalLM.from_pretrained(tiny_base))


def test_copies_are_patched_too(tiny_base, calls):
    model = llama(tiny_base)
    patch_peft(model)
    twin = copy.deepcopy(model)
    assert_same(step(twin, batch()), step(model, batch()), within=0)
    assert len(calls) == 2 * LLAMA_LINEARS
    assert (
        model.state_dict().keys()
        == twin.state_dict().keys()
        == llama(tiny_base).state_dict().keys()
    )


def test_inference(tiny_base, calls):
    """eval, no_grad, inference_mode, generation with a cache, mixed batches, an empty batch."""
    models = theirs, ours = llama(tiny_base), llama(tiny_base)
    patch_peft(ours)
    for model in models:
        add(model, "other", lora(r=2, lora_dropout=0.3))
        model.eval()
    names = ["other", "default", "__base__", "other"]
    inputs = {name: tensor for name, tensor in batch(length=9).items() if name != "labels"}
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            wanted = theirs(**inputs, adapter_names=names).logits
            calls.clear()
            assert torch.allclose(ours(**inputs, adapter_names=names).logits, wanted, rtol=1e-12)
            assert len(calls) == LLAMA_LINEARS
    ours(**batch()).loss.backward()  # what inference has left does not stand in the way
    texts = [m.generate(**inputs, max_new_tokens=5, do_sample=False) for m in models]
    assert torch.equal(*texts)
    texts = [
        m.generate(**inputs, max_new_tokens=3, do_sample=False, num_beams=2, adapter_names=names)
        for m in models
    ]
    assert torch.equal(*texts)
    with pytest.raises(ValueError, match="non-existing adapter"):
        ours(**inputs, adapter_names=["nobody"] * 4)
    q_proj = "base_model.model.model.layers.0.self_attn.q_proj"
    for shape in ((0, 5, 32), (0, 32), (32,), (2, 3, 1, 32)):
        x = torch.randn(*shape, dtype=torch.float64)
        x = x.transpose(0, 1).contiguous().transpose(0, 1) if x.ndim == 3 else x
        found, wanted = (model.get_submodule(q_proj)(x) for model in (ours, theirs))
        assert found.shape == wanted.shape and torch.allclose(found, wanted)
    columns = torch.randn(32, 6, dtype=torch.float64).T
    found, wanted = (model.get_submodule(q_proj)(columns) for model in (ours, theirs))
    assert torch.allclose(found, wanted)
    assert set(patch_report(ours).seen) == {Fallback.SMALL}, "decoding"


def test_frozen_factors(tiny_base):
    """What is frozen gets no gradient, and the others those of PEFT."""
    models = theirs, ours = llama(tiny_base), llama(tiny_base)
    patch_peft(ours)
    for model in models:
        for number, (name, parameter) in enumerate(model.named_parameters()):
            if "lora_" in name and number % 3 == 0:
                parameter.requires_grad_(False)
    assert_same(step(ours, batch()), step(theirs, batch()), within=1e-12)
    for model in models:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_A" in name)
    assert_same(step(ours, batch()), step(theirs, batch()), within=1e-12)


@pytest.mark.parametrize(
    ("base", "autocast", "adapters", "within"),
    [
        (torch.bfloat16, None, torch.float32, 2e-2),
        (torch.bfloat16, None, torch.bfloat16, 3e-2),
        (torch.bfloat16, torch.bfloat16, torch.float32, 3e-2),
        (torch.float32, torch.bfloat16, torch.float32, 3e-2),
        (torch.float64, torch.bfloat16, torch.float64, 1e-2),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_number_formats(tiny_base, calls, base, autocast, adapters, within, inside):
    """16 bits and autocast: as far from float64 as PEFT is, or nearer; the same types."""
    config = lora()
    exact = step(llama(tiny_base, config, dtype=torch.float64), batch())
    errors, dtypes = [], []
    for patch in (False, True):
        model = llama(tiny_base, config, dtype=base)
        right = llama(tiny_base, config, dtype=torch.float64)
        factors = {n: p for n, p in right.named_parameters() if "lora_" in n}
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = factors[name].data.to(adapters)
        if patch:
            patch_peft(model)
        enabled = autocast is not None
        with torch.autocast("cpu", autocast, enabled=enabled):
            out = model(**batch())
            if inside:
                out.loss.backward()
        if not inside:
            out.loss.backward()
        found = {"logits": out.logits.detach(), **gradients(model)}
        wanted = {"logits": exact[0], **exact[1]}
        assert {t.dtype for name, t in found.items() if name != "logits"} == {adapters}
        errors.append(
            {n: float((found[n].double() - wanted[n]).norm() / wanted[n].norm()) for n in wanted}
        )
        dtypes.append(found["logits"].dtype)
    assert len(calls) == LLAMA_LINEARS
    assert dtypes[0] == dtypes[1]
    theirs, ours = errors
    assert max(ours.values()) <= max(max(theirs.values()) * 1.3, within)
    assert sum(ours.values()) <= 1.1 * sum(theirs.values()) + 1e-3


def test_the_same_bits_again(tiny_base):
    model = llama(tiny_base, lora(lora_dropout=0.3), dtype=torch.float32)
    patch_peft(model)
    results = []
    for _ in range(3):
        torch.manual_seed(4)
        results.append(step(model, batch()))
    for again in results[1:]:
        assert_same(again, results[0], within=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_trainer(tiny_base, tmp_path, checkpointing):
    """transformers' Trainer with accelerate: the losses of PEFT, and a folder that loads."""
    from transformers import Trainer, TrainingArguments

    rows = [{name: t[0] for name, t in batch(rows=1, seed=n).items()} for n in range(8)]
    losses = []
    for patch in (False, True):
        model = llama(tiny_base, dtype=torch.float32)
        if patch:
            patch_peft(model)
        folder = tmp_path / str(patch)
        arguments = TrainingArguments(
            str(folder),
            max_steps=4,
            per_device_train_batch_size=2,
            logging_steps=1,
            save_steps=4,
            learning_rate=1e-2,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            gradient_checkpointing=checkpointing,
        )
        trainer = Trainer(model, arguments, train_dataset=rows)
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
        assert (folder / "checkpoint-4" / "adapter_model.safetensors").exists()
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert not patch_report(model).seen


def test_compiled(tiny_base, calls):
    """PEFT's forward is what torch.compile sees: a whole graph, as before."""
    model = llama(tiny_base)
    mlp = model.base_model.model.model.layers[0].mlp
    x = torch.randn(4, 3, 32, dtype=torch.float64)
    wanted = mlp(x)
    patch_peft(model)
    compiled = torch.compile(mlp, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(x), wanted, rtol=1e-12)
    assert not calls
    assert torch.allclose(mlp(x), wanted, rtol=1e-12)
    assert len(calls) == 3


def test_the_names_that_users_look_for():
    from lorafusion.kernels import patch_peft as module

    assert lorafusion.patch_peft is module.patch_peft is patch_peft
    assert lorafusion.adapter_rows is module.adapter_rows
    assert lorafusion.unpatch_peft is unpatch_peft
