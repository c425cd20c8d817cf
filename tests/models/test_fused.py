"""Norms, rotary positions and gated MLPs of each family as one pass: which, and what they give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lorafusion.kernels.binding import bind_layout
from lorafusion.kernels.layout import AdapterLayout
from lorafusion.models import fused_mlp, fused_norm, fused_rotary
from lorafusion.models import stage as stage_module
from lorafusion.models.fused import Fused, fuse_elementwise
from lorafusion.models.fused_mlp import find_mlp
from lorafusion.models.fused_norm import find_norm
from lorafusion.models.fused_rotary import RotaryChecks, find_rotary
from lorafusion.models.load import load_base
from lorafusion.models.part import Part
from lorafusion.models.stage import Stage
from tests.models.families import FAMILIES
from tests.models.pieces import LAYERS, Piece, Result, cut, run, write_family

BaseOf = Callable[[str], Path]
# Norms of a layer; whether it has a gated MLP and rotary positions; norms at the end.
FOUND = {
    **dict.fromkeys(("llama", "qwen2", "mistral", "phi3"), (2, 1, 1, 1)),
    **dict.fromkeys(("qwen3", "gemma2", "olmo2"), (4, 1, 1, 1)),
    "gemma3": (6, 1, 1, 1),
    "gpt2": (0, 0, 0, 0),  # layer norms, one linear before its activation, learned positions
    "gpt_neox": (0, 0, 1, 0),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_found(family: str, dtype: str, family_base: BaseOf) -> None:
    stage = Stage(load_base(str(family_base(family)), dtype))
    layers = len(stage.layers)
    norms, mlps, attentions, last = FOUND[family]
    counts = tuple(map(len, stage.fused))
    assert counts == (layers * norms + last, layers * mlps, layers * attentions)


def test_norms_of_float64_are_transformers_own(family_base: BaseOf) -> None:
    """They are float32 inside; in float64 the op would give other digits."""
    stage = Stage(load_base(str(family_base("llama")), "float64"))
    assert stage.fused.norms == ()


@pytest.fixture
def unfused(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], Any]:
    """Call something while stages leave all as it is."""

    def call(make: Callable[[], Any]) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(stage_module, "fuse_elementwise", lambda *_: Fused((), (), ()))
            return make()

    return call


def assert_near(found: Result, expected: Result, tolerance: float) -> None:
    for ours, theirs in (
        *zip(found.hidden, expected.hidden, strict=True),
        (found.loss, expected.loss),
    ):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()
    assert found.gradients.keys() == expected.gradients.keys()
    for name, theirs in expected.gradients.items():
        assert (found.gradients[name] - theirs).norm() <= tolerance * theirs.norm(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_transformers_own(family: str, unfused: Any, family_base: BaseOf) -> None:
    """Forward and backward through all layers, with adapters of two jobs on them."""
    whole = Part.whole(3)
    load = lambda: Piece.load(family_base(family), whole, dtype="float32")  # noqa: E731
    assert_near(run([load()]), run([unfused(load)]), 2e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3"])
def test_stages_and_recomputation_change_no_bit(family: str, tmp_path: Path) -> None:
    write_family(family, tmp_path, tied=False)
    whole = run([Piece.load(tmp_path, Part.whole(LAYERS), dtype="float32")])
    pieces = [
        Piece.load(tmp_path, part, dtype="float32", recompute=True) for part in cut(LAYERS, 2)
    ]
    assert all(piece.stage.fused.norms for piece in pieces)
    found = run(pieces)
    assert torch.equal(found.hidden[-1], whole.hidden[-1])
    assert found.gradients.keys() == whole.gradients.keys()
    for name, gradient in whole.gradients.items():
        assert torch.equal(found.gradients[name], gradient), name


def count_calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each op is called from now on."""
    calls = dict.fromkeys(("rms_norm", "rotary", "gated_product", "gated_halves"), 0)

    def counted(name: str, op: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            calls[name] += 1
            return op(*args, **options)

        return run

    for module in (fused_norm, fused_mlp, fused_rotary):
        for name in calls.keys() & vars(module).keys():
            monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    return calls


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", (7, 3, 3, 0)),
        ("phi3", (7, 3, 0, 3)),
        ("gpt_neox", (0, 3, 0, 0)),  # of a part of each head
    ],
)
def test_a_forward_calls_them(
    family: str, expected: tuple[int, ...], family_base: BaseOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    piece = Piece.load(family_base(family), Part.whole(3), dtype="float32")
    calls = count_calls(monkeypatch)
    run([piece])
    assert tuple(calls.values()) == expected


def test_only_a_stages_forward_is_another(
    family_base: BaseOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base called by itself, and another model of the family, run transformers' own code."""
    folder = str(family_base("llama"))
    other, base = load_base(folder, "float32"), load_base(folder, "float32")
    modeling = vars(__import__(type(base.model).__module__, fromlist=["*"]))
    before = dict(modeling)
    stage = Stage(base)
    calls = count_calls(monkeypatch)
    base.model.set_attn_implementation("eager")
    other.model.set_attn_implementation("eager")
    tokens = torch.arange(3, 12)[None]
    assert torch.equal(base.model(tokens).logits, other.model(tokens).logits)
    assert not any(calls.values())
    assert modeling == before
    assert not any("forward" in vars(module) for module in other.model.modules())
    again = fuse_elementwise(base.model, base.names.linears)
    assert again == stage.fused


# --- what looks like one and is none


class Norm(nn.Module):
    """Llama's, and what a test changes."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor] = lambda y: y) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(24) + 0.5)
        self.eps = 1e-5
        self.change = change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return self.change(self.weight * (x.float() * scale).to(x.dtype))


class Gated(Norm):
    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * gate


class WithBias(Norm):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(24))


class OtherEps(Norm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * (x.float() * scale).to(x.dtype)


@torch.no_grad()
def test_norms_that_are_others() -> None:
    assert find_norm(Norm()) is not None
    for other in (
        Norm(lambda y: y + 1e-6),
        Norm(lambda y: y.clamp(-3, 3)),
        Norm(lambda y: y.double()),
        Gated(),
        WithBias(),
        OtherEps(),
        Norm().double(),
        nn.LayerNorm(24, bias=False),
        nn.Linear(24, 24, bias=False),
        nn.Embedding(3, 24),
    ):
        assert find_norm(other) is None


@torch.no_grad()
def test_a_norm_with_a_trained_weight_or_an_input_of_another_dtype_is_called_itself() -> None:
    norm = Norm()
    forward = find_norm(norm)
    assert forward is not None
    x = torch.randn(2, 24)
    norm.weight.requires_grad_()
    with torch.enable_grad():
        assert torch.autograd.grad(forward(norm, x).sum(), norm.weight)[0].abs().sum() > 0
    assert torch.equal(forward(norm, x.bfloat16()), norm(x.bfloat16()))


class Mlp(nn.Module):
    """Llama's, and what a test changes."""

    def __init__(
        self,
        activation: nn.Module | None = None,
        change: Callable[[torch.Tensor], torch.Tensor] = lambda y: y,
    ) -> None:
        super().__init__()
        self.up, self.gate = (nn.Linear(8, 12, bias=False) for _ in range(2))
        self.down = nn.Linear(12, 8)
        self.act = activation or nn.SiLU()
        self.change = change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.change(self.act(self.gate(x)) * self.up(x)))


class Square(Mlp):
    """All shapes alike: only the values tell which linear is which."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.gate = (nn.Linear(8, 8) for _ in range(3))


LINEARS = ("up", "gate", "down")


@torch.no_grad()
def test_mlps_that_are_others() -> None:
    for right in (Mlp(), Mlp(nn.GELU(approximate="tanh")), Square()):
        forward = find_mlp(right, LINEARS)
        assert forward is not None
        x = torch.randn(1, 3, 8)
        torch.testing.assert_close(forward(right, x), right(x))
    zeros = Mlp()
    zeros.down.weight.zero_()
    for other in (
        Mlp(nn.ReLU()),
        Mlp(nn.GELU()),
        Mlp(nn.Dropout(0.0)),
        Mlp(change=lambda y: y.clamp(max=7)),
        Mlp(change=lambda y: y * 1.001),
        zeros,
    ):
        assert find_mlp(other, LINEARS) is None
    assert find_mlp(Mlp(), LINEARS[:2]) is None
    assert find_mlp(nn.Linear(8, 8), ()) is None


def half_turn(q: Any, k: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
    def turn(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        across = torch.cat((-second, first), dim=-1)
        return x * cos.unsqueeze(unsqueeze_dim) + across * sin.unsqueeze(unsqueeze_dim)

    return turn(q), turn(k)


def interleaved(q: Any, k: Any, cos: Any, sin: Any) -> Any:
    def turn(x: torch.Tensor) -> torch.Tensor:
        across = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
        return x * cos.unsqueeze(1) + across * sin.unsqueeze(1)

    return turn(q), turn(k)


def of_one_half(q: Any, k: Any, cos: Any, sin: Any) -> Any:
    return half_turn(q, k, *(torch.cat((x[..., :4], x[..., :4]), dim=-1) for x in (cos, sin)))


def of_two_dims(q: Any, k: Any, cos: Any, sin: Any) -> Any:
    return half_turn(q[0, 0], k[0, 0], cos.flatten(0, 1), sin, unsqueeze_dim=5)


class Attention(nn.Module):
    """Uses the function that a test gives the global name."""

    def forward(self, q: Any, k: Any, cos: Any, sin: Any, **options: Any) -> Any:
        return turn_both(q, k, cos, sin, **options)


turn_both: Any = half_turn


@torch.no_grad()
def test_rotary_functions_that_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    some = nn.Linear(2, 2)
    for other in (interleaved, of_one_half, of_two_dims, F.scaled_dot_product_attention, len):
        monkeypatch.setitem(globals(), "turn_both", other)
        assert find_rotary(Attention(), RotaryChecks(some)) is None


@torch.no_grad()
def test_rotary_positions_laid_out_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two samples, other dimensions, or one sample's angles for all: the function itself."""
    forward = find_rotary(Attention(), RotaryChecks(nn.Linear(2, 2)))
    assert forward is not None
    calls = count_calls(monkeypatch)
    q, k, cos, sin = (torch.randn(1, 3, 5, 8) for _ in range(4))
    cos, sin = cos[:, 0], sin[:, 0]
    torch.testing.assert_close(
        forward(None, q, k, cos, sin), half_turn(q, k, cos, sin), rtol=1e-6, atol=1e-6
    )
    assert calls["rotary"] == 1
    by_rows = [x.transpose(1, 2) for x in (q, k)]
    for given, options in (
        ((*(x.repeat(2, 1, 1, 1) for x in (q, k)), cos, sin), {}),
        ((*by_rows, cos, sin), {"unsqueeze_dim": 2}),
        ((q, k, cos[:, :1], sin[:, :1]), {}),
    ):
        found, expected = forward(None, *given, **options), half_turn(*given, **options)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert calls["rotary"] == 1


def test_a_forward_of_someone_elses_stays(family_base: BaseOf) -> None:
    base = load_base(str(family_base("llama")), "float32")
    norm: Any = base.model.get_decoder().layers[0].input_layernorm
    theirs = type(norm).forward
    norm.forward = lambda x: theirs(norm, x)
    stage = Stage(base)
    assert "model.layers.0.input_layernorm" not in stage.fused.norms
    assert len(stage.fused.norms) == 6
    with bind_layout(AdapterLayout.build([], {}, training=False)):
        x = torch.randn(1, 3, 32)
        assert torch.equal(norm(x), theirs(norm, x))
