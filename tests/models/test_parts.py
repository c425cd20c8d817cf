"""A base cut into stages: each loads its own tensors, and together they are the whole."""

from __future__ import annotations

import contextvars
import json
import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.autograd.graph import saved_tensors_hooks

from lorafusion.errors import ModelError
from lorafusion.kernels.binding import bind_layout
from lorafusion.models import attention, load
from lorafusion.models.load import combined_hash, load_base
from lorafusion.models.part import Part
from lorafusion.models.stage import Stage
from tests.conftest import make_llama
from tests.models.families import FAMILIES, GQA, SMALL
from tests.models.pieces import LAYERS, LENGTHS, Piece, Result, cut, run, write_family

CUTS = ((2,), (1, 4))


@pytest.fixture(scope="module", params=["untied", "tied"])
def tied(request: pytest.FixtureRequest) -> bool:
    return request.param == "tied"


@pytest.fixture(scope="module", params=FAMILIES)
def family_folder(
    request: pytest.FixtureRequest, tied: bool, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("cut")
    write_family(request.param, folder, tied=tied)
    return folder


def whole_result(folder: Path, dtype: str = "float64") -> tuple[Piece, Result, list[torch.Tensor]]:
    """And what comes out of each of its layers."""
    whole = Piece.load(folder, Part.whole(LAYERS), dtype=dtype)
    between: list[torch.Tensor] = []
    for layer in whole.stage.layers:
        layer.register_forward_hook(lambda _m, _a, output: between.append(output.detach()[0]))
    return whole, run([whole]), between


def test_chained_parts_are_the_whole(family_folder: Path) -> None:
    """Bit by bit: the same ops see the same tensors. Hashes are merged as in a run."""
    parts_are_the_whole(family_folder, "float64")


def parts_are_the_whole(folder: Path, dtype: str) -> None:
    whole, expected, between = whole_result(folder, dtype)
    for cuts in CUTS:
        pieces = [Piece.load(folder, part, dtype=dtype) for part in cut(LAYERS, *cuts)]
        found = run(pieces)
        assert torch.equal(found.loss, expected.loss)
        for boundary, hidden in zip(cuts, found.hidden, strict=False):
            assert torch.equal(hidden, between[boundary - 1])
        assert torch.equal(found.hidden[-1], expected.hidden[0])
        assert found.gradients.keys() == expected.gradients.keys()
        for name, gradient in expected.gradients.items():
            assert gradient.abs().max() > 0, name
            assert torch.equal(found.gradients[name], gradient), name
        assert all(piece.base.names == whole.base.names for piece in pieces)
        holds_its_own_tensors(whole, pieces)


def holds_its_own_tensors(whole: Piece, pieces: list[Piece]) -> None:
    head = whole.base.names.head
    embedding: Any = whole.base.model.get_input_embeddings()
    embedded = next(n for n, m in whole.base.model.named_modules() if m is embedding)
    output: Any = whole.base.model.get_output_embeddings()
    shared = embedding.weight is output.weight
    layers = next(name for name, m in whole.base.model.named_modules() if m is whole.stage.layers)
    counts = dict.fromkeys(whole.base.tensors, 0)
    for piece in pieces:
        own = {f"{layers}.{index}." for index in piece.stage.part.layers}
        for name, tensor in piece.base.tensors.items():
            counts[name] += 1
            assert not tensor.is_meta
            if name.startswith(layers):
                assert any(name.startswith(prefix) for prefix in own), name
            if name.startswith(f"{head}."):
                assert piece.stage.part.last
            if name.startswith(f"{embedded}."):
                assert piece.stage.part.first or (shared and piece.stage.part.last)
    assert {name for name, count in counts.items() if count > 1} == (
        {f"{embedded}.weight"} if shared else set()
    )
    assert min(counts.values()) == 1
    hashes: dict[str, str] = {}
    for piece in reversed(pieces):  # in whatever order they arrive
        hashes.update(piece.base.tensor_hashes())
    assert combined_hash(hashes) == whole.base.fingerprint()
    assert len({piece.base.fingerprint() for piece in pieces}) == len(pieces)


OTHERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "final norm without weights": ("OlmoForCausalLM", GQA, "float64"),
    "the same norm at both ends": ("NanoChatForCausalLM", GQA, "float64"),
    "experts stacked when loaded": (
        "MixtralForCausalLM",
        {**GQA, "num_local_experts": 4},
        "float32",  # torch multiplies them in no other
    ),
    "embedding scaled beside it": ("GemmaForCausalLM", GQA, "float64"),
    "positions looked up by a mask": ("OPTForCausalLM", {"ffn_dim": 48}, "float64"),
    "linears around the layers": (
        "OPTForCausalLM",
        {"ffn_dim": 48, "word_embed_proj_dim": 24, "tie_word_embeddings": True},
        "float64",
    ),
}


def write_other(what: str, folder: Path) -> str:
    model_class, settings, dtype = OTHERS[what]
    kind: Any = getattr(transformers, model_class)
    config = {**SMALL, **settings, "num_hidden_layers": LAYERS}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(kind.config_class(**config))
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return dtype


@pytest.mark.parametrize("what", OTHERS)
def test_bases_whose_ends_are_special(what: str, tmp_path: Path) -> None:
    parts_are_the_whole(tmp_path, write_other(what, tmp_path))


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma3")
    write_family("gemma3", folder, tied=True)
    return folder


@pytest.mark.parametrize("name", ["llama", "gemma3", "gemma2", "gpt2"])
def test_recompute_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    write_family(name, tmp_path, tied=True)
    parts = cut(LAYERS, 2)
    plain = run([Piece.load(tmp_path, part) for part in parts])
    again = run([Piece.load(tmp_path, part, recompute=True) for part in parts])
    assert torch.equal(again.loss, plain.loss)
    assert again.gradients.keys() == plain.gradients.keys()
    assert all(torch.equal(again.gradients[n], plain.gradients[n]) for n in plain.gradients)


Around = Callable[[Piece, Callable[[], None]], None]


def gradients_of(piece: Piece, around: Around) -> list[torch.Tensor]:
    """Of the adapters and of what enters, from a backward that ``around`` calls."""
    generator = torch.Generator().manual_seed(5)
    entering = torch.randn(sum(LENGTHS), piece.stage.width, generator=generator)
    entering = entering.to(piece.stage.dtype).requires_grad_()
    hidden = piece.stage(entering, piece.layout())
    around(piece, lambda: hidden.square().sum().backward(retain_graph=True))
    found = [*piece.gradients().values(), entering.grad]
    piece.clear()
    return [tensor for tensor in found if tensor is not None]


def at_once(_piece: Piece, backward: Callable[[], None]) -> None:
    backward()


def under_another_layout(piece: Piece, backward: Callable[[], None]) -> None:
    with bind_layout(piece.layout(step=99)):
        backward()


def on_a_thread_without_one(_piece: Piece, backward: Callable[[], None]) -> None:
    thread = threading.Thread(target=contextvars.Context().run, args=(backward,))
    thread.start()
    thread.join()


def after_other_forwards(piece: Piece, backward: Callable[[], None]) -> None:
    for step in (4, 5):
        piece.stage(torch.ones(sum(LENGTHS), piece.stage.width), piece.layout(step))
    backward()


def after_a_first_one(piece: Piece, backward: Callable[[], None]) -> None:
    backward()
    piece.clear()
    backward()


@pytest.mark.parametrize(
    "around", [under_another_layout, on_a_thread_without_one, after_other_forwards]
)
def test_recompute_takes_its_own_microbatchs_routing(around: Around, gemma3: Path) -> None:
    part = Part(range(1, 4), LAYERS)
    expected = gradients_of(Piece.load(gemma3, part, dtype="float32"), at_once)
    found = gradients_of(Piece.load(gemma3, part, dtype="float32", recompute=True), around)
    assert len(found) == len(expected) > 40
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


def test_recompute_can_be_repeated(gemma3: Path) -> None:
    part = Part(range(1, 4), LAYERS)
    expected = gradients_of(Piece.load(gemma3, part), at_once)
    found = gradients_of(Piece.load(gemma3, part, recompute=True), after_a_first_one)
    assert all(torch.equal(f, e) for f, e in zip(found[:-1], expected[:-1], strict=True))


def kept_rows(folder: Path, *, recompute: bool) -> float:
    """Bytes per token that the forward of three layers leaves, in hidden states [T, D]."""
    piece = Piece.load(folder, Part(range(1, 4), LAYERS), dtype="float32", recompute=recompute)
    adapted = [tensor for adapter in piece.adapters for tensor in adapter.parameters().values()]
    tensors = (*piece.base.model.parameters(), *adapted)
    weights = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.shape[-2:-1] == (rows,):
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    rows = sum(LENGTHS)
    entering = torch.ones(rows, piece.stage.width, requires_grad=True)
    with saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = piece.stage(entering, piece.layout())
    del hidden
    return sum(kept.values()) / (4 * rows * piece.stage.width)


def test_recompute_keeps_each_layers_input_alone(gemma3: Path) -> None:
    assert kept_rows(gemma3, recompute=False) > 20
    assert kept_rows(gemma3, recompute=True) <= 3


def test_no_recompute_where_no_gradient_is_wanted(
    gemma3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    piece = Piece.load(gemma3, Part(range(1, 4), LAYERS), dtype="float32", recompute=True)
    entering = torch.ones(sum(LENGTHS), piece.stage.width)
    monkeypatch.setattr("lorafusion.models.stage.checkpoint", None)
    with torch.no_grad():
        assert not piece.stage(entering, piece.layout()).requires_grad


def test_gradients_go_no_further_down_than_they_must(tmp_path: Path) -> None:
    """Adapters in layers 1 and 3 only: none reaches the tokens, all of them cross the cut."""
    make_llama(tmp_path, layers=4)
    adapted = r"model\.layers\.[13]\.self_attn\.o_proj"
    stages = [Piece.load(tmp_path, p, targets=adapted) for p in cut(4, 1, 2)]
    hidden = stages[0].stage(torch.arange(sum(LENGTHS)), stages[0].layout())
    assert not hidden.requires_grad
    assert hidden.grad_fn is None
    for piece in stages[1:]:
        hidden = piece.stage(hidden.detach().requires_grad_(), piece.layout())
        assert hidden.requires_grad
    assert [len(piece.gradients()) for piece in stages] == [0, 0, 0]
    hidden.sum().backward()
    assert [len(piece.gradients()) for piece in stages] == [0, 0, 4]


def without(folder: Path, name: str, target: Path) -> Path:
    """A copy of a base whose checkpoint lacks a tensor."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    tensors.pop(name, None)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.fixture(scope="module", params=["untied", "tied"])
def llama(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    make_llama(folder, layers=3, tied=request.param == "tied")
    return folder


@pytest.mark.parametrize(
    ("name", "untied", "tied"),
    [
        ("model.embed_tokens.weight", {0}, {0, 2}),
        ("model.layers.1.mlp.up_proj.weight", {1}, {1}),
        ("model.layers.2.input_layernorm.weight", {2}, {2}),
        ("model.norm.weight", {2}, {2}),
        ("lm_head.weight", {2}, set()),  # a tied one is not there
    ],
)
def test_a_missing_tensor_is_refused_by_the_part_that_needs_it(
    name: str, untied: set[int], tied: set[int], llama: Path, tmp_path: Path
) -> None:
    needed = (
        tied if json.loads((llama / "config.json").read_text())["tie_word_embeddings"] else untied
    )
    folder = without(llama, name, tmp_path / "base")
    for stage, part in enumerate(cut(3, 1, 2)):
        if stage in needed:
            with pytest.raises(ModelError, match="not in the checkpoint, such as"):
                load_base(str(folder), "float32", part)
        else:
            Stage(load_base(str(folder), "float32", part))


def test_what_other_parts_hold_is_no_reason_to_warn(
    llama: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    transformers.utils.logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING):
            for part in cut(3, 1, 2):
                load_base(str(llama), "float32", part)
    finally:
        transformers.utils.logging.disable_propagation()
    assert not caplog.records
    assert "UNEXPECTED" not in capfd.readouterr().err


def test_what_a_stage_says_of_itself(llama: Path) -> None:
    for part in cut(3, 1, 2):
        base = load_base(str(llama), "bfloat16", part)
        stage = Stage(base)
        assert (stage.part, stage.width, stage.dtype) == (part, 32, torch.bfloat16)
        assert (part.first, part.last) == (0 in part.layers, 2 in part.layers)
        assert (stage.head is not None) == part.last
        if not part.last:
            with pytest.raises(AssertionError, match="last stage alone"):
                stage.loss(torch.ones(1, 32), torch.zeros(1, dtype=torch.int64), torch.ones(1))


def mixes_rows(_module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    return output + torch.nn.functional.pad(output, (0, 0, 1, 0))[:, :-1]


@pytest.mark.parametrize("stage", range(3))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_part_is_checked_for_leaks(stage: int, dtype: str, llama: Path) -> None:
    base = load_base(str(llama), dtype, cut(3, 1, 2)[stage])
    decoder: Any = base.model.get_decoder()
    decoder.layers[stage].register_forward_hook(mixes_rows)
    with pytest.raises(ModelError, match="when samples are packed side by side"):
        Stage(base)


@pytest.mark.parametrize("stage", range(3))
def test_every_part_is_checked_for_rules(
    stage: int, gemma3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = attention._read_rules
    monkeypatch.setattr(attention, "_read_rules", lambda *args: read(*args)._replace(window=None))
    with pytest.raises(ModelError, match="other logits"):
        Stage(load_base(str(gemma3), "float32", cut(LAYERS, 1, 3)[stage]))


def test_a_decoder_that_needs_tokens_in_every_layer_is_not_cut(tmp_path: Path) -> None:
    """Gemma 4 looks up an embedding for each of its layers."""
    own = {"vocab_size_per_layer_input": 320, "hidden_size_per_layer_input": 8}
    settings = {**SMALL, **GQA, **own, "num_hidden_layers": LAYERS}
    kind: Any = transformers.Gemma4ForCausalLM
    kind(kind.config_class(**settings)).save_pretrained(tmp_path)
    Stage(load_base(str(tmp_path), "float32"))
    with pytest.raises(ModelError, match=r"cannot be cut into stages; allowed: .*one process"):
        Stage(load_base(str(tmp_path), "float32", cut(LAYERS, 2)[1]))


def test_a_decoder_that_looks_at_its_tokens_is_not_cut(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = transformers.LlamaModel.forward

    def looks(self: Any, input_ids: Any, **options: Any) -> Any:
        assert int(input_ids.max()) < 320
        return forward(self, input_ids, **options)

    monkeypatch.setattr(transformers.LlamaModel, "forward", looks)
    with pytest.raises(ModelError, match=r"looks at numbers .*cannot be cut into stages"):
        load_base(str(llama), "float32", cut(3, 1)[0])


def test_a_hash_is_that_of_all_bytes_however_many_are_taken_at_once(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base(str(llama), "bfloat16")
    for name, tensor in list(base.tensors.items()):
        base.tensors[f"{name} by columns"] = (
            tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor
        )
    base.tensors["a number"] = torch.tensor(2.5)
    expected = base.tensor_hashes()
    assert all(
        expected[n] == expected[f"{n} by columns"] for n in dict(base.model.named_parameters())
    )
    for size in (1, 100, 1000):
        monkeypatch.setattr(load, "_HASHED_BYTES", size)
        assert base.tensor_hashes() == expected
