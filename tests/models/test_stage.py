from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM, LlamaModel
from transformers.modeling_outputs import BaseModelOutputWithPast

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
        found = stage.head.logits(stage(torch.cat(samples()), plain_layout()))
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
    bank = AdapterBank(base.model, shared_inputs=stage.shared_inputs)
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


@pytest.mark.parametrize(
    ("model_class", "settings"),
    [
        ("CohereForCausalLM", {"logit_scale": 0.3}),
        ("GraniteForCausalLM", {"logits_scaling": 7.0, "embedding_multiplier": 3.0}),
        ("PhiForCausalLM", {}),  # its head has a bias
    ],
)
def test_other_heads(model_class: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Scales and biases, with the loss that transformers computes and its gradient."""
    import transformers

    kind = getattr(transformers, model_class)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = kind.config_class(
        vocab_size=50,
        num_hidden_layers=2,
        initializer_range=0.3,
        pad_token_id=0,
        **small,
        **settings,
    )
    model = kind(config)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    base = load_base(str(tmp_path), "float64")
    stage = Stage(base)
    head = base.model.get_output_embeddings()
    assert stage.head.scale != 1.0 or head.bias is not None
    hidden = torch.randn(9, 16, dtype=torch.float64, requires_grad=True)
    targets = torch.arange(9) % 5
    total, _ = stage.loss(hidden, targets, torch.full((9,), 1 / 9))
    total.backward()
    ours, hidden.grad = hidden.grad, None
    logits = head(hidden) * getattr(config, "logit_scale", 1) / settings.get("logits_scaling", 1)
    expected = torch.nn.functional.cross_entropy(logits, targets)
    expected.backward()
    assert total.item() == pytest.approx(float(expected), rel=1e-7)  # the weights are float32
    torch.testing.assert_close(ours, hidden.grad, rtol=1e-6, atol=1e-9)


class ScalesBetween(LlamaModel):
    """Multiplies the hidden state between its layers."""

    def forward(self, input_ids: Any = None, position_ids: Any = None, **_: Any) -> Any:
        hidden = self.embed_tokens(input_ids)
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1])[None]
        rotary = self.rotary_emb(hidden, position_ids=position_ids)
        for layer in self.layers:
            hidden = 2 * layer(hidden, position_embeddings=rotary)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden))


class AddsAfter(LlamaModel):
    """Does something behind its norm that is no module."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=output.last_hidden_state + 1)


class MakesMasks(LlamaModel):
    """Builds a mask itself and does not ask which attention is chosen."""

    def forward(self, input_ids: Any = None, position_ids: Any = None, **_: Any) -> Any:
        hidden = self.embed_tokens(input_ids)
        mask = torch.zeros(1, 1, hidden.shape[1], hidden.shape[1], dtype=hidden.dtype)
        rotary = self.rotary_emb(hidden, position_ids=position_ids)
        for layer in self.layers:
            hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden))


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (ScalesBetween, "changes the hidden state between its layers"),
        (AddsAfter, "does more after its last layer"),
        (MakesMasks, "masks of its own"),
    ],
)
def test_a_decoder_that_cannot_be_taken_apart_is_refused(
    decoder: type[LlamaModel], message: str, tiny_base: Path
) -> None:
    base = load_base(str(tiny_base), "float32")
    base.model.model.__class__ = decoder
    with pytest.raises(ModelError, match=message):
        Stage(base)


def test_layers_that_cannot_be_told_apart_are_refused(tiny_base: Path) -> None:
    base = load_base(str(tiny_base), "float32")
    base.model.model.spare = torch.nn.ModuleList(torch.nn.Identity() for _ in range(2))
    with pytest.raises(ModelError, match="2 lists of 2 layers"):
        Stage(base)


def mixes_rows(_module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    return output + torch.nn.functional.pad(output, (0, 0, 1, 0))[:, :-1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_leak_from_one_sample_into_the_next_is_refused(dtype: str, tiny_base: Path) -> None:
    """As a convolution or a state over tokens would do: right alone, wrong when packed."""
    base = load_base(str(tiny_base), dtype)
    base.model.model.layers[0].register_forward_hook(mixes_rows)
    with pytest.raises(ModelError, match="when samples are packed side by side"):
        Stage(base)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_rule_for_logits_is_refused(dtype: str, tiny_base: Path) -> None:
    base = load_base(str(tiny_base), dtype)
    base.model.config.logit_scale = 1.3  # what a Llama does not do
    with pytest.raises(ModelError, match="other logits of its final hidden state"):
        Stage(base)


def test_what_a_decoder_does_first_is_learned(tiny_base: Path) -> None:
    """An embedding that is scaled outside of its module, as earlier Gemmas did."""
    base = load_base(str(tiny_base), "float64")
    base.model.model.register_forward_pre_hook(scale_embedding, with_kwargs=True)
    tokens = torch.cat(samples())
    with torch.no_grad():
        scaled = Stage(base)(tokens, plain_layout())
        plain = Stage(load_base(str(tiny_base), "float64"))(tokens, plain_layout())
    assert (scaled - plain).norm() > 0.1 * plain.norm()


def scale_embedding(decoder: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    embedded = 3 * decoder.get_input_embeddings()(kwargs["input_ids"])
    return args, {**kwargs, "input_ids": None, "inputs_embeds": embedded}


def test_a_stage_leaves_the_decoder_as_it_was(tiny_base: Path) -> None:
    base = load_base(str(tiny_base), "float32")
    tokens = torch.arange(9)[None]
    expected = base.model(input_ids=tokens).logits
    layers = list(base.model.model.layers)
    stage = Stage(base)
    stage(torch.cat(samples()), plain_layout())
    assert list(base.model.model.layers) == layers == list(stage.layers)
    assert not any(module._forward_hooks for module in base.model.modules())
    base.model.set_attn_implementation(base.attention)
    assert torch.equal(base.model(input_ids=tokens).logits, expected)


def test_a_checkpoint_in_float16_is_converted(tiny_base: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float16).save_pretrained(tmp_path)
    base = load_base(str(tmp_path), "float32")
    assert base.dtype == torch.float32
    Stage(base)
