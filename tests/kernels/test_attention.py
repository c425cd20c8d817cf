"""Every way to run packed attention without a GPU, against the reference in float64."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.nn.attention import flex_attention

from lorafusion.errors import KernelError
from lorafusion.kernels.attention import cpu, flex, packed_attention, reference, samples
from lorafusion.kernels.native import library
from tests.kernels.attention_case import (
    HEADS,
    LENGTHS,
    RULES,
    Heads,
    assert_near,
    draw,
    expect,
    rows_of,
    rules_of,
    step,
)

# Sums of up to 300 float32 terms; a bfloat16 result is rounded once, at most 2^-9.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8}
BUILT = pytest.mark.skipif(library.library() is None, reason="the loops are not built")
WAYS = pytest.mark.parametrize("way", [pytest.param("native", marks=BUILT), "torch"])
FEW = ["plain", "window of 7", "all"]


@pytest.fixture
def run(way, monkeypatch):
    """The op with the loops and without them, and the other way cannot be taken."""
    monkeypatch.delenv(library.VARIABLE, raising=False)
    if way == "torch":
        monkeypatch.setenv(library.VARIABLE, "0")
        monkeypatch.setattr(samples, "BLOCK_ROWS", 64)
        monkeypatch.delattr(cpu, "_PackedAttention")
    else:
        monkeypatch.delattr(cpu, "samples")
    return packed_attention


@WAYS
@pytest.mark.parametrize("heads", HEADS, ids=["9 to 3", "2 to 2", "8 to 1"])
@pytest.mark.parametrize("what", RULES)
def test_equals_the_reference(run, way, heads, what):
    tensors, rules = draw(heads), rules_of(what, heads)
    for found, expected in zip(step(run, tensors, rules), expect(tensors, rules), strict=True):
        assert found.dtype == torch.float32
        assert_near(found, expected, TOLERANCE[torch.float32])


@pytest.mark.parametrize("what", RULES)
def test_flex_attention_equals_the_reference(what, monkeypatch):
    """Uncompiled, which tests mask, scores and sinks; a GPU's test runs it compiled."""
    # Compiled it has no backward on a CPU, so torch forbids it.
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    heads, lengths = Heads(4, 2, 16, 24), (5, 0, 130, 1)
    tensors, rules = draw(heads, sum(lengths)), rules_of(what, heads, lengths)
    expected = expect(tensors, rules)
    for found, exact in zip(step(flex.packed_attention, tensors, rules), expected, strict=True):
        assert_near(found, exact, TOLERANCE[torch.float32])


@WAYS
@pytest.mark.parametrize("what", RULES)
def test_bfloat16_is_rounded_once(run, way, what):
    tensors, rules = draw(HEADS[0], dtype=torch.bfloat16), rules_of(what, HEADS[0])
    out, *gradients = step(run, tensors, rules)
    expected, *exact = expect(tensors, rules)
    assert_near(out, expected, TOLERANCE[torch.bfloat16])
    for found, gradient in zip(gradients, exact, strict=True):
        assert found.dtype == torch.bfloat16
        # The backward starts from the rounded output, as every fused attention does.
        assert_near(found, gradient, 2 * TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("what", RULES)
def test_the_reference_is_the_formula(what, monkeypatch):
    """Row by row in float64: no mask, nothing packed. The op runs it when told to."""
    monkeypatch.setenv("LORAFUSION_BACKEND", "reference")
    heads, lengths = Heads(4, 2, 6, 10), (3, 1, 12)
    rules = rules_of(what, heads, lengths)
    tensors = [tensor.detach().double() for tensor in draw(heads, sum(lengths))]
    query, key, value = (t.repeat_interleave(heads.query // len(t), dim=0) for t in tensors)
    found = packed_attention(*tensors, rules)
    for start, stop in pairwise(rules.starts):
        for row in range(start, stop):
            seen = slice(max(start, row - (rules.window or 99) + 1), row + 1)
            scores = (key[:, seen] @ query[:, row, :, None])[..., 0] * rules.scaling
            if rules.softcap is not None:
                scores = rules.softcap * torch.tanh(scores / rules.softcap)
            weights = scores.exp()
            total = weights.sum(dim=-1)
            if rules.sinks is not None:
                total = total + rules.sinks.double().exp()
            expected = (weights[:, None] @ value[:, seen])[:, 0] / total[:, None]
            torch.testing.assert_close(found[row], expected, rtol=1e-12, atol=1e-12)


@WAYS
@pytest.mark.parametrize("what", FEW)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_sample_has_equal_bits_packed_and_alone(run, way, what, dtype):
    tensors, rules = draw(HEADS[0], dtype=dtype), rules_of(what, HEADS[0])
    together = step(run, tensors, rules)
    dout = torch.randn(together[0].shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    for start, stop in pairwise(rules.starts):
        alone = [tensor.detach()[:, start:stop].requires_grad_() for tensor in tensors]
        out = run(*alone, rules._replace(starts=(0, stop - start)))
        found = [out, *torch.autograd.grad(out, alone, dout[start:stop])]
        for number, (ours, theirs) in enumerate(zip(found, together, strict=True)):
            assert torch.equal(ours, rows_of(theirs, number, slice(start, stop)))


@BUILT
@pytest.mark.parametrize("lengths", [(300,), (300, 5, 5), (300, 300, 300, 300)], ids=str)
def test_threads_change_no_bit(lengths):
    """On two threads the query heads of a long sample are apart, on one they are not."""
    tensors, rules = draw(HEADS[0], sum(lengths)), rules_of("plain", HEADS[0], lengths)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            found.append(step(packed_attention, tensors, rules))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@WAYS
@pytest.mark.parametrize("what", FEW)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_sick_sample_changes_no_other(run, way, what, poison):
    rules = rules_of(what, HEADS[2], lengths := (20, 30, 10))
    healthy = draw(HEADS[2], sum(lengths))
    sick = [tensor.detach().clone() for tensor in healthy]
    for tensor in sick:
        tensor[:, 25] = poison
        tensor.requires_grad_()
    before, after = (step(run, tensors, rules) for tensors in (healthy, sick))
    assert not after[0][25].isfinite().any()
    for number, (ours, theirs) in enumerate(zip(before, after, strict=True)):
        for rows in (slice(0, 20), slice(50, 60)):
            assert torch.equal(rows_of(ours, number, rows), rows_of(theirs, number, rows))


@WAYS
@pytest.mark.parametrize("what", ["plain", "softcap", "sinks"])
def test_large_scores_do_not_overflow(run, way, what):
    """Scores of up to 2e4, of which float32 keeps three digits behind the point."""
    tensors = [(tensor.detach() * 40).requires_grad_() for tensor in draw(HEADS[0])]
    rules = rules_of(what, HEADS[0])
    for found, expected in zip(step(run, tensors, rules), expect(tensors, rules), strict=True):
        assert found.isfinite().all()
        assert_near(found, expected, 2e-2)


@BUILT
def test_small_scores_keep_their_digits_under_a_softcap():
    """Near 0 tanh(x) by e^2x would lose them: 50 · tanh(z / 50) with z about 1e-3."""
    tensors = draw(HEADS[0], 200)
    rules = rules_of("plain", HEADS[0], (200,))._replace(softcap=50.0, scaling=1e-4)
    for found, expected in zip(
        step(packed_attention, tensors, rules), expect(tensors, rules), strict=True
    ):
        assert_near(found, expected, 5e-7)


def test_other_dtypes_run_in_torch():
    tensors, rules = draw(HEADS[2], dtype=torch.float64), rules_of("all", HEADS[2])
    for found, expected in zip(
        step(packed_attention, tensors, rules), expect(tensors, rules), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    half = draw(HEADS[2], dtype=torch.float16)
    assert_near(step(packed_attention, half, rules)[0], expect(half, rules)[0], 2**-10)


def test_float16_through_the_reference_is_rounded_once():
    half, rules = draw(HEADS[2], dtype=torch.float16), rules_of("all", HEADS[2])
    found = reference.packed_attention(*half, rules)
    assert found.dtype == torch.float16
    assert_near(found, expect(half, rules)[0], 2**-10)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"starts": (0, 4)}, "starts"),
        ({"starts": (0, 9, 4, sum(LENGTHS))}, "starts"),
        ({"window": 0}, "window"),
        ({"softcap": 0.0}, "softcap"),
        ({"sinks": torch.zeros(3)}, "sinks"),
        ({"sinks": torch.zeros(8, requires_grad=True)}, "frozen"),
    ],
    ids=str,
)
def test_rules_that_do_not_fit_are_refused(change, named):
    with pytest.raises(KernelError, match=named):
        packed_attention(*draw(HEADS[2]), rules_of("plain", HEADS[2])._replace(**change))


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        (((6, 5, 8), (4, 5, 8), (4, 5, 8)), "heads"),
        (((6, 5, 8), (2, 4, 8), (2, 4, 8)), "shapes"),
        (((6, 5, 8), (2, 5, 8), (3, 5, 8)), "shapes"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(shapes, named):
    rules = rules_of("plain", HEADS[0], (5,))
    with pytest.raises(KernelError, match=named):
        packed_attention(*(torch.zeros(shape) for shape in shapes), rules)
