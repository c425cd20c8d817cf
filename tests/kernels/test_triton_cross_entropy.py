"""The Triton kernel of the loss, in the interpreter, against torch's own loss in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.kernels.interpreter import require_interpreter

require_interpreter()

from lorafusion.errors import KernelError  # noqa: E402
from lorafusion.kernels.cross_entropy import cross_entropy  # noqa: E402
from lorafusion.kernels.cross_entropy import triton as loss  # noqa: E402
from lorafusion.kernels.launch_configs import LaunchConfig  # noqa: E402
from lorafusion.planner.devices import find_device  # noqa: E402
from tests.kernels.loss_case import RULES, assert_near, build_loss  # noqa: E402

# Of the loss, and of the gradient's norm; a 16-bit product is rounded before and behind.
TOLERANCE = {torch.float32: 3e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words at a time: fewer than a row has."""
    monkeypatch.setattr(loss, "default_config", lambda *_: LaunchConfig(BM=1, BN=128))


@pytest.mark.parametrize(
    ("dtype", "rules"),
    [(torch.float32, rules) for rules in RULES]
    + [(dtype, rules) for dtype in (torch.float16, torch.bfloat16) for rules in ("plain", "all")],
    ids=str,
)
def test_equals_torch(dtype, rules):
    case = build_loss(2, words=391, rules=rules).to(dtype)
    found = case.run("triton")
    assert (found.each.dtype, found.gradient.dtype) == (torch.float32, dtype)
    assert_near(found, case.expect(), TOLERANCE[dtype])


@pytest.mark.parametrize("words", [1, 2, 16, 128, 129, 257])
def test_any_vocabulary(words):
    case = build_loss(2, words=words, rules="all").to(torch.float32)
    assert_near(case.run("triton", factor=3), case.expect(factor=3), 3e-6)


@pytest.mark.parametrize("rules", ["plain", "all"])
def test_in_chunks(rules, monkeypatch):
    case = build_loss(7, words=50, rules=rules).to(torch.float32)
    monkeypatch.setattr(loss, "CHUNK_BYTES", 3 * 64 * 4)
    launched = []
    kernel = loss.cross_entropy_kernel

    class Noting:
        def __getitem__(self, grid):
            launched.append(grid)
            return kernel[grid]

    monkeypatch.setattr(loss, "cross_entropy_kernel", Noting())
    assert_near(case.run("triton"), case.expect(), 3e-6)
    assert launched == [(2,), (2,), (3,)]


def test_no_rows():
    found = build_loss(0).to(torch.float32).run("triton")
    assert found.total == 0
    assert found.gradient.shape == (0, 12)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_logits(size):
    case = build_loss(3, words=200).to(torch.float32)
    bias = torch.zeros(200)
    bias[1] = size
    case = replace(case, hidden=case.hidden / 100, bias=bias, targets=torch.arange(3))
    assert_near(case.run("triton"), case.expect(), 3e-6)


def test_a_masked_vocabulary():
    case = build_loss(2, words=300, rules="bias").to(torch.float32)
    case.bias[:290] = float("-inf")
    case = replace(case, targets=torch.tensor([290, 299]))
    assert_near(case.run("triton"), case.expect(), 3e-6)


@pytest.mark.parametrize("rules", ["plain", "all"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_row_is_bad_alone(rules, bad):
    case = build_loss(3, words=150, rules=rules).to(torch.float32)
    expected = case.run("triton")
    hidden = case.hidden.clone()
    hidden[1, 3] = bad
    found = replace(case, hidden=hidden).run("triton")
    assert not found.each[1].isfinite()
    for row in (0, 2):
        assert torch.equal(found.each[row], expected.each[row])
        assert torch.equal(found.gradient[row], expected.gradient[row])


@pytest.mark.parametrize("rules", ["plain", "softcap"])
def test_without_a_gradient(rules):
    case = build_loss(3, words=150, rules=rules).to(torch.float32)
    found = loss.cross_entropy(case.hidden, case.head, case.targets, case.weights, None)
    torch.testing.assert_close(found.double(), case.expect().each, rtol=3e-6, atol=3e-6)


def test_a_target_that_is_no_word_gives_nan():
    """On a GPU nobody waits for the targets to be checked; here the kernel is called itself."""
    case = build_loss(3, words=150).to(torch.float32)
    targets = torch.tensor([150, 3, -1])
    gradient = torch.empty_like(case.hidden)
    found = loss.cross_entropy(case.hidden, case.head, targets, case.weights, gradient)
    assert found.isnan().tolist() == [True, False, True]
    assert gradient.isfinite().all()


def test_float64_is_refused(monkeypatch):
    monkeypatch.setenv("LORAFUSION_BACKEND", "triton")
    case = build_loss(2)
    with pytest.raises(KernelError, match="not float64"):
        cross_entropy(case.hidden, case.head, case.targets, case.weights)


def test_the_planner_knows_the_limit():
    assert find_device("h100").loss_bytes == loss.CHUNK_BYTES
