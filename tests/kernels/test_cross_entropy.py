"""Head and loss in one, on the CPU: the loops and the torch ops against torch's own loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lorafusion.errors import KernelError
from lorafusion.kernels.cross_entropy import Head, cpu, cross_entropy
from lorafusion.kernels.cross_entropy.chunks import chunks
from lorafusion.kernels.native import library, loss_calls
from lorafusion.planner.devices import find_device
from tests.kernels.loss_case import RULES, LossCase, assert_near, build_loss

BUILDS = pytest.mark.parametrize("build", library.BUILDS.values(), indirect=True)
EACH_RULE = pytest.mark.parametrize("rules", RULES)
# Of the loss, and of the gradient's norm; a bfloat16 product is rounded before and behind.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.fixture(params=["loops", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The compiled loops where they are built, and the torch ops."""
    if request.param == "torch":
        monkeypatch.setenv(library.VARIABLE, "0")
    elif library.library() is None:
        pytest.skip("the loops are not built")
    return request.param


def small_chunks(monkeypatch: pytest.MonkeyPatch, rows: int, case: LossCase) -> None:
    """At most so many rows a chunk."""
    size = case.hidden.element_size()
    monkeypatch.setattr(cpu, "CHUNK_BYTES", rows * len(case.weight) * size)
    monkeypatch.setattr(cpu, "TORCH_BYTES", rows * len(case.weight) * max(4, size))


# --- against the definition


@EACH_RULE
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 23])
def test_float64_equals_torch(rows: int, rules: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = build_loss(rows, rules=rules)
    small_chunks(monkeypatch, 8, case)
    assert_near(case.run(factor=3), case.expect(factor=3), 1e-11)
    logits = case.head.logits(case.hidden)
    own = torch.nn.functional.cross_entropy(logits, case.targets, reduction="none")
    torch.testing.assert_close(own, case.expect().each, rtol=1e-12, atol=1e-12)


@EACH_RULE
def test_the_reference_is_torchs(rules: str) -> None:
    case = build_loss(5, rules=rules)
    assert_near(case.run("reference", factor=3), case.expect(factor=3), 1e-12)


@EACH_RULE
def test_gradcheck(rules: str) -> None:
    case = build_loss(5, rules=rules)
    assert torch.autograd.gradcheck(
        lambda h: cross_entropy(h, case.head, case.targets, case.weights)[0],
        case.hidden.requires_grad_(),
    )


@BUILDS
@EACH_RULE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "words"), [(1, 2), (3, 1031), (37, 50), (70, 513)])
def test_each_build(build, rows, words, rules, dtype) -> None:
    case = build_loss(rows, words=words, rules=rules).to(dtype)
    found = case.run()
    assert (found.total.dtype, found.each.dtype) == (torch.float32, torch.float32)
    assert found.gradient.dtype == dtype
    assert_near(found, case.expect(), TOLERANCE[dtype])


@EACH_RULE
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_torch_ops(rules, dtype, monkeypatch) -> None:
    monkeypatch.setenv(library.VARIABLE, "0")
    case = build_loss(37, words=200, rules=rules).to(dtype)
    small_chunks(monkeypatch, 8, case)
    assert_near(case.run(), case.expect(), TOLERANCE[dtype])


@pytest.mark.parametrize("rules", ["plain", "all"])
def test_a_large_vocabulary(way: str, rules: str) -> None:
    """As large as Gemma's, and a multiple of nothing: 262,147 is prime."""
    case = build_loss(3, words=262_147, width=4, rules=rules).to(torch.float32)
    found, expected = case.run(), case.expect()
    torch.testing.assert_close(found.each.double(), expected.each, rtol=3e-6, atol=3e-6)
    # The product over the words adds up 262,147 terms in float32 that all but cancel.
    assert_near(found, expected, 2e-4)


def test_no_rows(way: str) -> None:
    found = build_loss(0).to(torch.float32).run()
    assert found.total.item() == 0.0
    assert found.each.shape == (0,)
    assert found.gradient.shape == (0, 12)


def test_one_word(way: str) -> None:
    found = build_loss(3, words=1).to(torch.float32).run()
    assert not found.each.any()
    assert not found.gradient.any()


def test_a_transposed_head_and_hidden(way: str) -> None:
    case = build_loss(21, words=70).to(torch.float32)
    turned = replace(case, hidden=case.hidden.T.contiguous().T, weight=case.weight.T.contiguous().T)
    assert_near(turned.run(), case.expect(), 3e-6)


# --- numbers at the edge


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_logits(way: str, size: float) -> None:
    """A confident row, right or wrong: no overflow, and no digit lost beside the largest logit."""
    case = build_loss(6, words=40).to(torch.float32)
    bias = torch.zeros(40)
    bias[3] = size
    hidden, weight = case.hidden / 100, case.weight
    case = replace(case, hidden=hidden, weight=weight, bias=bias, targets=torch.arange(6))
    found, expected = case.run(), case.expect()
    assert_near(found, expected, 3e-6)
    right = found.each[3]
    if size > 0:
        assert right == 0
        assert (found.each[:3] > 9.9e3).all()


def test_huge_logits_have_a_finite_loss(way: str) -> None:
    case = build_loss(4).to(torch.float32)
    case = replace(case, hidden=case.hidden * 1e4)
    assert_near(case.run(), case.expect(), 1e-5)


def test_a_masked_vocabulary(way: str) -> None:
    """Words with a bias of minus infinity, a whole block of them first."""
    case = build_loss(9, words=1200, rules="bias").to(torch.float32)
    case.bias[:1100] = float("-inf")
    case = replace(case, targets=1100 + torch.arange(9))
    found = case.run()
    assert_near(found, case.expect(), 3e-6)


@BUILDS
def test_exp_and_tanh(build) -> None:
    """Against float64: of exp the relative error, of a capped logit the absolute one.

    Two words of logits x and 0 have the gradient e^x / (1 + e^x), times the slope of the cap.
    """
    x = torch.linspace(-86, 0, 100_001)
    found = _gradient_of_two_words(x, Head(torch.empty(2, 1)))
    exact = torch.sigmoid(x.double())
    assert ((found - exact).abs() / exact).max() < 3e-7
    x = torch.cat([x / 8, -x / 8, x / 1e4])
    found = _gradient_of_two_words(x, Head(torch.empty(2, 1), softcap=1.0))
    t = torch.tanh(x.double())
    exact = torch.sigmoid(t) * (1 - t * t)
    assert (found - exact).abs().max() < 2e-7


def _gradient_of_two_words(x: torch.Tensor, head: Head) -> torch.Tensor:
    """Of the first, whose product is x; the second's is 0, and it is the target."""
    products = torch.zeros(2, -(-len(x) // 16) * 16)
    products[0, : len(x)] = x
    targets, losses = torch.ones(len(x), dtype=torch.int64), torch.empty(len(x))
    call = loss_calls.LossCall(head, targets, torch.ones(len(x)), losses)
    call.run(products[:, : len(x)], slice(0, len(x)), gradient=True)
    return products[0, : len(x)].double()


# --- what a row depends on


@pytest.mark.parametrize("rules", ["plain", "all"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_row_is_bad_alone(way: str, rules: str, bad: float) -> None:
    case = build_loss(19, words=300, rules=rules).to(torch.float32)
    expected = case.run()
    hidden = case.hidden.clone()
    hidden[7, 3] = bad
    found = replace(case, hidden=hidden).run()
    others = [row for row in range(19) if row != 7]
    assert not found.each[7].isfinite()
    assert torch.equal(found.each[others], expected.each[others])
    assert torch.equal(found.gradient[others], expected.gradient[others])


def test_a_row_has_its_bits_in_any_company(way: str) -> None:
    """Where the products have equal bits: of whole numbers, exact in any order."""
    case = build_loss(40, words=300).to(torch.float32)
    case = replace(case, hidden=case.hidden.round(), weight=case.weight.round())
    # A weight of 0 but for the identity, so that the gradient's product adds nothing up.
    weight = torch.zeros(300, 300).fill_diagonal_(1.0)
    hidden = torch.randn(40, 300, generator=torch.Generator().manual_seed(1))
    case = replace(case, hidden=hidden, weight=weight)
    together = case.run()
    for rows in (slice(0, 2), slice(3, 20), slice(33, 40)):  # one alone runs in torch
        alone = case.rows(rows).run()
        assert torch.equal(alone.each, together.each[rows])
        assert torch.equal(alone.gradient, together.gradient[rows])


@BUILDS
@pytest.mark.parametrize("rules", ["plain", "all"])
def test_bits_do_not_depend_on_threads(build, rules) -> None:
    case = build_loss(33, words=5000, rules=rules).to(torch.float32)
    products = torch.randn(5000, 48, generator=torch.Generator().manual_seed(0))
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            logits, losses = products.clone(), torch.empty(33)
            call = loss_calls.LossCall(case.head, case.targets, case.weights, losses)
            call.run(logits[:, :33], slice(0, 33), gradient=True)
            found.append((logits[:, :33], losses))
    finally:
        torch.set_num_threads(before)
    for logits, losses in found[1:]:
        assert torch.equal(logits, found[0][0])
        assert torch.equal(losses, found[0][1])


def test_two_runs_have_the_same_bits(way: str) -> None:
    case = build_loss(33, words=700, rules="all").to(torch.float32)
    first, again = case.run(), case.run()
    assert torch.equal(first.each, again.each)
    assert torch.equal(first.gradient, again.gradient)


@BUILDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_outside_of_a_line_is_written(build, dtype) -> None:
    """Words before and behind, and the rest of a row's line beyond 64 bytes, stay NaN."""
    case = build_loss(5, words=30).to(dtype)
    room = torch.full((34, 96), torch.nan, dtype=dtype)
    products = room[2:32, 32:37]
    products.copy_(torch.randn(30, 5))
    room[2:32, 37:64] = 0
    losses = torch.full((9,), torch.nan)
    call = loss_calls.LossCall(case.head, case.targets, case.weights, losses[2:7])
    call.run(products, slice(0, 5), gradient=True)
    assert products.isfinite().all()
    assert losses[2:7].isfinite().all()
    assert losses.isnan().sum() == 4
    outside = torch.ones_like(room, dtype=torch.bool)
    outside[2:32, 32:64] = False
    assert room[outside].isnan().all()


# --- the contract


def test_the_head_gets_no_gradient_and_a_row_may_weigh_nothing(way: str) -> None:
    case = build_loss(3).to(torch.float32)
    case.weight.requires_grad_()
    case.weights[1] = 0
    found = case.run()
    assert case.weight.grad is None
    assert found.gradient[1].abs().max() == 0
    assert found.gradient[0].abs().max() > 0
    case.run("reference")
    assert case.weight.grad is None


def test_without_gradient_none_is_made(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = build_loss(3).to(torch.float32)
    expected = case.run()
    with torch.no_grad():
        hidden = case.hidden.requires_grad_()
        total, each = cross_entropy(hidden, case.head, case.targets, case.weights)
    assert not total.requires_grad
    assert torch.equal(each, expected.each)


def test_a_second_derivative_is_refused() -> None:
    case = build_loss(3)
    hidden, factor = case.hidden.requires_grad_(), torch.tensor(2.0, requires_grad=True)
    total, each = cross_entropy(hidden, case.head, case.targets, case.weights)
    assert not each.requires_grad
    (gradient,) = torch.autograd.grad(total * factor, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_softcap_of_a_bfloat16_base_is_float32() -> None:
    case = build_loss(40, rules="softcap").to(torch.bfloat16)
    logits = case.head.logits(case.hidden)
    assert logits.dtype == torch.float32
    # Only the product is rounded to bfloat16; the cap then keeps float32's digits.
    product = torch.nn.functional.linear(case.hidden, case.weight).double()
    torch.testing.assert_close(logits.double(), 3 * torch.tanh(product / 3), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(3)}, r"hidden is \[3\]"),
        ({"hidden": torch.zeros(3, 12, dtype=torch.int32)}, "of torch.int32; expected"),
        ({"hidden": torch.zeros(3, 11)}, r"head.weight is \[50, 12\] .* expected \[50, 11\]"),
        ({"weight": torch.zeros(50, 12).double()}, "expected .* torch.float32"),
        ({"bias": torch.zeros(49)}, r"head.bias is \[49\]"),
        ({"targets": torch.zeros(3, dtype=torch.int32)}, "targets is .* torch.int32"),
        ({"targets": torch.tensor([1, 50, 2])}, "targets run from 1 to 50; expected 0 to 49"),
        ({"targets": torch.tensor([1, -1, 2])}, "targets run from -1 to 2"),
        ({"weights": torch.zeros(4)}, r"weights is \[4\]"),
    ],
)
def test_arguments_that_do_not_fit(way: str, change: dict[str, torch.Tensor], message: str) -> None:
    case = replace(build_loss(3).to(torch.float32), **change)
    with pytest.raises(KernelError, match=message):
        cross_entropy(case.hidden, case.head, case.targets, case.weights)


# --- chunks


@pytest.mark.parametrize("rows", [0, 1, 9, 10, 11, 20, 101])
def test_chunks_are_even(rows: int) -> None:
    found = list(chunks(rows, 7, 70))
    lengths = [part.stop - part.start for part in found]
    assert [row for part in found for row in range(rows)[part]] == list(range(rows))
    assert len(found) == -(-rows // 10)
    assert not lengths or max(lengths) <= min(lengths) + 1
    assert [part.stop - part.start for part in chunks(3, 7, 1)] == [1, 1, 1]


class Largest(TorchDispatchMode):
    """The most bytes of any tensor that an operation gave."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return result


@pytest.mark.parametrize("rules", ["plain", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_keep_to_their_bytes(way, rules, dtype, monkeypatch) -> None:
    """By every tensor that is made: none has all rows by all words, and none is over the limit."""
    case = build_loss(200, words=1000, rules=rules).to(dtype)
    limit = 40 * 1000 * 4
    monkeypatch.setattr(cpu, "CHUNK_BYTES", limit)
    monkeypatch.setattr(cpu, "TORCH_BYTES", limit)
    with Largest() as largest:
        case.run()
    padding = 1000 * 64 if way == "loops" else 0
    assert 0.8 * limit / (2 if dtype == torch.bfloat16 else 1) < largest.bytes <= limit + padding


def test_the_planner_knows_the_limit() -> None:
    assert find_device("cpu").loss_bytes == cpu.CHUNK_BYTES
