from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM

from lorafusion.adapters.bank import AdapterBank
from lorafusion.adapters.lora import LoraConfig
from lorafusion.errors import ModelError
from lorafusion.kernels.layout import AdapterLayout, Segment
from lorafusion.models.load import check_base, load_base, meta_model
from lorafusion.models.stage import Stage
from tests.conftest import make_llama

LENGTHS = [6, 1, 11]


@pytest.fixture(scope="module", params=["tied", "untied"])
def base_folder(
    request: pytest.FixtureRequest, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    if request.param == "tied":
        return tiny_base
    folder = tmp_path_factory.mktemp("untied")
    make_llama(folder, tied=False, seed=3, layers=3)
    return folder


def samples() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(320, (length,), generator=generator) for length in LENGTHS]


def plain_layout() -> AdapterLayout:
    return AdapterLayout.build(
        [Segment(-1, 0, 0, range(len(LENGTHS)), LENGTHS)], {}, training=False
    )


def test_logits_are_the_models_own(base_folder: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.cat([reference(input_ids=s[None]).logits[0] for s in samples()])
        stage = Stage(load_base(str(base_folder), "float64"))
        found = stage.head(stage(torch.cat(samples()), plain_layout()))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_one_sample_does_not_reach_another(tiny_base: Path) -> None:
    stage = Stage(load_base(str(tiny_base), "float64"))
    before = samples()
    after = samples()
    after[1] = (after[1] + 1) % 320
    after[2][0] = (after[2][0] + 1) % 320
    with torch.no_grad():
        expected, found = (stage(torch.cat(s), plain_layout()) for s in (before, after))
    torch.testing.assert_close(found[:6], expected[:6], rtol=1e-12, atol=1e-12)
    assert (found[6:] - expected[6:]).abs().max(dim=1).values.min() > 1e-6


def test_the_base_is_frozen_and_in_eval_mode(tiny_base: Path) -> None:
    base = load_base(str(tiny_base), "bfloat16")
    assert base.dtype == torch.bfloat16
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert base.tensors.keys() == dict(base.model.named_parameters()).keys()


def test_no_gradient_below_the_first_adapted_layer(tmp_path: Path) -> None:
    make_llama(tmp_path, layers=3)
    base = load_base(str(tmp_path), "float32")
    stage = Stage(base)
    bank = AdapterBank(base.model)
    adapter = bank.add(LoraConfig(r=2), bank.match(r"model\.layers\.1\.self_attn\.o_proj"), seed=0)
    outputs: list[torch.Tensor] = []
    for layer in stage.layers:
        layer.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    segment = Segment(adapter.slot, 0, 1, range(3), LENGTHS)
    layout = AdapterLayout.build([segment], bank.modules([adapter.slot]), training=True)
    hidden = stage(torch.cat(samples()), layout)
    assert [output.requires_grad for output in outputs] == [False, True, True]
    hidden.sum().backward()
    assert adapter.parameters()["model.layers.1.self_attn.o_proj.lora_B"].grad is not None
    assert all(parameter.grad is None for parameter in base.tensors.values())


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def drop_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def rope(kind: str) -> Callable[[Path], None]:
    parameters = {"rope_type": kind, "factor": 2.0, "rope_theta": 10000.0}
    return lambda folder: edit_config(folder, rope_parameters=parameters)


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights missing": (drop_weight, "1 weights are not in the checkpoint.*up_proj"),
    "dynamic rotary": (rope("dynamic"), "dynamic rotary positions"),
    "no architecture": (lambda folder: edit_config(folder, architectures=None), "no causal LM"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "unknown model": (lambda folder: edit_config(folder, model_type="nothing"), "cannot be loaded"),
    "other shapes": (lambda folder: edit_config(folder, vocab_size=400), "cannot be loaded"),
    "broken weights": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 64),
        "cannot be loaded",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_base_that_cannot_be_used_is_refused(what: str, tiny_base: Path, tmp_path: Path) -> None:
    break_it, message = REFUSED[what]
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    break_it(folder)
    with pytest.raises(ModelError, match=message):
        load_base(str(folder), "float32")


def test_a_model_that_is_no_causal_lm_is_refused(tmp_path: Path) -> None:
    small = {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8}
    config = BertConfig(vocab_size=16, num_hidden_layers=1, **small)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    for refuse in (check_base, meta_model, lambda folder: load_base(folder, "float32")):
        with pytest.raises(ModelError, match=r"no causal LM.*BertForMaskedLM"):
            refuse(str(tmp_path))


def test_a_head_with_a_bias_is_refused(tiny_base: Path) -> None:
    base = load_base(str(tiny_base), "float32")
    head = base.model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(320), requires_grad=False)
    with pytest.raises(ModelError, match="bias on its head"):
        Stage(base)


def test_a_model_that_does_more_between_its_layers_is_refused(tiny_base: Path) -> None:
    """As Gemma does, which scales its embeddings outside of the embedding module."""
    base = load_base(str(tiny_base), "float32")
    base.model.model.register_forward_pre_hook(
        lambda _module, args, kwargs: (
            args,
            {
                **{k: v for k, v in kwargs.items() if k != "input_ids"},
                "inputs_embeds": 3 * base.model.get_input_embeddings()(kwargs["input_ids"]),
            },
        ),
        with_kwargs=True,
    )
    with pytest.raises(ModelError, match="other logits"):
        Stage(base)


def test_a_model_without_the_parts_is_refused(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=1)).save_pretrained(
        tmp_path
    )
    with pytest.raises(ModelError, match=r"has no .*layers"):
        Stage(load_base(str(tmp_path), "float32"))
