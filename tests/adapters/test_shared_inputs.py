"""Linears of one input run together where they are given it, and alone where they are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lorafusion.adapters import adapted
from lorafusion.adapters.bank import AdapterBank, ResidentAdapter
from lorafusion.adapters.lora import LoraConfig
from lorafusion.kernels.binding import bind_layout, bound_scratch
from lorafusion.kernels.layout import AdapterLayout, Segment
from lorafusion.models.load import load_base
from lorafusion.models.stage import Stage
from lorafusion.module_names import ModuleNames

NAMES = ("q", "k", "v")
LENGTHS = [4, 3]
ROWS = sum(LENGTHS)


class Three(nn.Module):
    """q, k and v, called as a test says."""

    def __init__(self, run: Callable[[Three, torch.Tensor], list[torch.Tensor]]) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, n, dtype=torch.float64) for n in (8, 4, 6))
        self.requires_grad_(False)
        self._run = run

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return self._run(self, x)


def all_three(m: Three, x: torch.Tensor) -> list[torch.Tensor]:
    return [m.q(x), m.k(x), m.v(x)]


class Results:
    """Outputs and gradients of a run, and how often linears ran together and alone."""

    def __init__(
        self,
        run: Callable[[Three, torch.Tensor], list[torch.Tensor]],
        *,
        shared: tuple[tuple[str, ...], ...] = (NAMES,),
        targets: tuple[tuple[str, ...], ...] = (NAMES, ("q", "v")),
    ) -> None:
        torch.manual_seed(0)
        self.model = Three(run)
        bank = AdapterBank(self.model, ModuleNames(NAMES, NAMES, ()), shared)
        adapters = [
            bank.add(LoraConfig(r=2 + seed, lora_dropout=0.3), names, seed=seed)
            for seed, names in enumerate(targets)
        ]
        tensors = [t for adapter in adapters for t in adapter.parameters().values()]
        for tensor in tensors:
            tensor.data.normal_()
        segments = [
            Segment(adapter.slot, 5, 1, [3], [length])
            for adapter, length in zip(adapters, LENGTHS, strict=False)
        ]
        rows = sum(LENGTHS[: len(adapters)])
        layout = AdapterLayout.build(
            segments, bank.modules([a.slot for a in adapters]), training=True
        )
        x = torch.randn(1, rows, 8, dtype=torch.float64, requires_grad=True)
        with pytest.MonkeyPatch.context() as patch:
            together = _count(patch, "shared_lora_linear")
            alone = _count(patch, "lora_linear")
            with bind_layout(layout):
                self.ys = self.model(x)
                self.left = dict(bound_scratch())
        self.together, self.alone = len(together), len(alone)
        wanted = [x, *tensors]
        dys = [torch.randn_like(y) for y in self.ys]
        self.gradients = torch.autograd.grad(self.ys, wanted, dys, allow_unused=True)

    def assert_near(self, other: Results) -> None:
        pairs = [*zip(self.ys, other.ys, strict=True)]
        pairs += zip(self.gradients, other.gradients, strict=True)
        for one, two in pairs:
            if one is None or two is None:
                assert one is two
            else:
                torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def _count(patch: pytest.MonkeyPatch, name: str) -> list[int]:
    calls: list[int] = []
    original = getattr(adapted, name)
    patch.setattr(adapted, name, lambda *args: (calls.append(1), original(*args))[1])
    return calls


def apart(run: Callable[[Three, torch.Tensor], list[torch.Tensor]], **options: object) -> Results:
    found = Results(run, shared=(), **options)
    assert found.together == 0
    return found


def test_they_run_together() -> None:
    found = Results(all_three)
    assert (found.together, found.alone) == (1, 0)
    assert not found.left
    found.assert_near(apart(all_three))


def test_without_a_word_of_it_they_run_alone() -> None:
    found = apart(all_three)
    assert (found.together, found.alone) == (0, 3)


@pytest.mark.parametrize(
    "other",
    [lambda x: x.clone(), lambda x: x.view_as(x), lambda x: x * 2],
    ids=["copy", "view", "other values"],
)
def test_another_tensor_runs_alone(other: Callable[[torch.Tensor], torch.Tensor]) -> None:
    def run(m: Three, x: torch.Tensor) -> list[torch.Tensor]:
        return [m.q(x), m.k(other(x)), m.v(x)]

    found = Results(run)
    assert (found.together, found.alone) == (1, 1)
    assert not found.left, "what was not taken is dropped"
    found.assert_near(apart(run))


def test_a_tensor_that_was_written_to_runs_alone() -> None:
    def run(m: Three, x: torch.Tensor) -> list[torch.Tensor]:
        h = x * 1
        with torch.no_grad():
            q = m.q(h)
            h.add_(1)
            ys = [q, m.k(h), m.v(h)]
        return [y * x.sum() for y in ys]

    found = Results(run)
    assert (found.together, found.alone) == (1, 2)
    for one, other in zip(found.ys, apart(run).ys, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_another_order_runs_alone_until_the_first() -> None:
    def run(m: Three, x: torch.Tensor) -> list[torch.Tensor]:
        k = m.k(x)
        q = m.q(x)
        return [q, k, m.v(x), m.k(x)]

    found = Results(run)
    assert (found.together, found.alone) == (1, 1)
    assert not found.left
    found.assert_near(apart(run))


def test_one_that_is_not_called_leaves_its_output() -> None:
    found = Results(lambda m, x: [m.q(x), m.v(x)])
    assert set(found.left) == {"k"}


def test_only_what_has_an_adapter_in_the_microbatch() -> None:
    """k is wrapped for another job that is not here."""
    found = Results(all_three, targets=(("q", "v"),))
    assert (found.together, found.alone) == (1, 0)
    found.assert_near(apart(all_three, targets=(("q", "v"),)))
    single = Results(all_three, targets=(("k",),))
    assert (single.together, single.alone) == (0, 1)


def test_the_base_keeps_its_names_and_weights() -> None:
    found = Results(all_three)
    names = {name for name, _ in found.model.named_parameters()}
    assert names == {f"{name}.base.{kind}" for name in NAMES for kind in ("weight", "bias")}
    modules = [name for name, _ in found.model.named_modules()]
    assert len(modules) == 1 + 2 * 3, "the others of an input are no submodules"


# --- in a stage


def tiny(
    folder: Path, *, recompute: bool = False, shared: bool = True
) -> tuple[Stage, ResidentAdapter, AdapterLayout]:
    base = load_base(str(folder), "float64")
    stage = Stage(base, recompute=recompute)
    bank = AdapterBank(base.model, base.names, stage.shared_inputs if shared else ())
    config = LoraConfig(r=3, lora_dropout=0.2)
    adapter = bank.add(config, bank.match("all-linear"), seed=1)
    generator = torch.Generator().manual_seed(3)
    for tensor in adapter.parameters().values():
        tensor.data.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    segment = Segment(adapter.slot, 1, 2, [0, 1], LENGTHS)
    return (
        stage,
        adapter,
        AdapterLayout.build([segment], bank.modules([adapter.slot]), training=True),
    )


def gradients(folder: Path, *, recompute: bool, shared: bool) -> dict[str, torch.Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        together = _count(patch, "shared_lora_linear")
        alone = _count(patch, "lora_linear")
        stage, adapter, layout = tiny(folder, recompute=recompute, shared=shared)
        stage(torch.arange(3, 3 + ROWS), layout).square().sum().backward()
        layers = len(stage.part.layers)
    times = 2 * layers * (2 if recompute else 1)
    assert len(together) == (times if shared else 0), "q, k, v and gate, up"
    assert len(alone) == (times if shared else 3.5 * times), "o and down"
    return {name: t.grad for name, t in adapter.parameters().items() if t.grad is not None}


@pytest.mark.parametrize("recompute", [False, True])
def test_a_stage_trains_as_with_linears_one_by_one(tiny_base: Path, recompute: bool) -> None:
    found = gradients(tiny_base, recompute=recompute, shared=True)
    expected = gradients(tiny_base, recompute=recompute, shared=False)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12)


def test_recompute_gives_the_same_bits(tiny_base: Path) -> None:
    plain = gradients(tiny_base, recompute=False, shared=True)
    again = gradients(tiny_base, recompute=True, shared=True)
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_the_scratch_is_empty_at_the_end_of_a_layer(tiny_base: Path) -> None:
    stage, _, layout = tiny(tiny_base)
    attention = stage.layers[1].self_attn
    k_proj = attention.k_proj
    attention.k_proj = nn.Linear(k_proj.base.in_features, k_proj.base.out_features).double()
    with pytest.raises(AssertionError, match=r"not called: \['model.layers.1.self_attn.k_proj'\]"):
        stage(torch.arange(3, 3 + ROWS), layout)
