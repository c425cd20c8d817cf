"""Which linears are given the same tensor, as a forward shows it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lorafusion.models.load import load_base
from lorafusion.models.part import Part
from lorafusion.models.shared_inputs import watch_inputs
from lorafusion.models.stage import Stage

LINEARS = ("a", "b", "c", "d")


class Model(nn.Module):
    """Four linears, called as a test says."""

    def __init__(self, run: Callable[[Model, torch.Tensor], object]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(3, 3) for _ in LINEARS)
        self._run = run

    def forward(self, x: torch.Tensor) -> object:
        return self._run(self, x)


def seen(run: Callable[[Model, torch.Tensor], object], calls: int = 1) -> list[tuple[str, ...]]:
    model = Model(run)
    with watch_inputs(model, (*LINEARS, "elsewhere")) as found:
        for _ in range(calls):
            model(torch.ones(2, 3))
    assert not model.a._forward_pre_hooks
    return found


def test_the_same_tensor_one_after_another() -> None:
    assert seen(lambda m, x: m.d(m.a(x) + m.b(x) + m.c(x)), calls=3) == [("a", "b", "c")]
    assert seen(lambda m, x: (m.b(x), m.a(x))) == [("b", "a")], "in the order of calls"
    assert seen(lambda m, x: (m.a(x), m.b(x), m.c(x + 0), m.d(x + 0))) == [("a", "b")]


def test_an_equal_tensor_is_not_the_same() -> None:
    assert seen(lambda m, x: (m.a(x), m.b(x.clone()))) == []
    assert seen(lambda m, x: (m.a(x), m.b(x.view(2, 3)))) == []
    assert seen(lambda m, x: m.b(m.a(x))) == []


def test_not_by_keyword() -> None:
    assert seen(lambda m, x: (m.a(x), m.b(input=x), m.c(x))) == []


def test_a_linear_that_is_called_twice_has_no_group() -> None:
    assert seen(lambda m, x: (m.a(x), m.b(x), m.a(x))) == []


def test_what_differs_from_call_to_call_does_not_count() -> None:
    turns = iter(range(9))
    assert seen(lambda m, x: (m.a(x), m.b(x if next(turns) else x + 0)), calls=3) == []
    turns = iter(range(9))
    assert seen(lambda m, x: (m.a(x), next(turns) and m.b(x)), calls=3) == []


def test_parents_are_apart() -> None:
    """An attention and an MLP on one norm: the second would wait through the first."""
    pair = nn.ModuleDict({"one": Model(lambda m, x: None), "two": Model(lambda m, x: None)})
    names = [f"{parent}.{linear}" for parent in pair for linear in LINEARS]
    x = torch.ones(2, 3)
    with watch_inputs(pair, names) as found:
        for name in ("one.a", "one.b", "two.a", "two.b"):
            pair.get_submodule(name)(x)
    assert found == [("one.a", "one.b"), ("two.a", "two.b")]


def test_hooks_go_where_the_forward_fails() -> None:
    model = Model(lambda m, x: None)
    with pytest.raises(RuntimeError), watch_inputs(model, LINEARS):
        raise RuntimeError
    assert not model.a._forward_pre_hooks


QKV = tuple(f"self_attn.{letter}_proj" for letter in "qkv")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")


@pytest.mark.parametrize(
    ("family", "groups"),
    [
        *((name, (QKV, GATE_UP)) for name in ("llama", "qwen2", "qwen3", "mistral", "olmo2")),
        *((name, (QKV, GATE_UP)) for name in ("gemma2", "gemma3")),
        ("phi3", ()),  # its q, k, v are one linear, and so are gate and up
        ("gpt2", ()),
        ("gpt_neox", ()),
    ],
)
def test_families(family: str, groups: tuple, family_base: Callable[[str], Path]) -> None:
    stage = Stage(load_base(str(family_base(family)), "float32"))
    layers = len(stage.part.layers)
    assert len(stage.shared_inputs) == layers * len(groups)
    for number in range(layers):
        for group in groups:
            assert tuple(f"model.layers.{number}.{name}" for name in group) in stage.shared_inputs


def test_a_part_sees_its_own_layers(tiny_base: Path) -> None:
    part = Part(range(1, 2), 2)
    stage = Stage(load_base(str(tiny_base), "float32", part))
    assert stage.shared_inputs == (
        tuple(f"model.layers.1.{name}" for name in QKV),
        tuple(f"model.layers.1.{name}" for name in GATE_UP),
    )
