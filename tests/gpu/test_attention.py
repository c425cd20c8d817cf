"""Every engine of packed attention that this GPU has, against the reference in float64."""

from __future__ import annotations

import pytest
import torch

from lorafusion.kernels.attention import AttentionRules, gpu, packed_attention
from lorafusion.kernels.attention.engines import ENGINES, Asked, machine_of, why_not
from tests.kernels.attention_case import RULES, Heads, draw, expect, rows_of, rules_of, step

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
HEADS = (Heads(9, 3, 64, 64), Heads(8, 1, 128, 128), Heads(4, 4, 64, 32))
BY_NAME = {engine.name: engine for engine in ENGINES}


def moved(tensors: list[torch.Tensor], rules: AttentionRules):
    sinks = None if rules.sinks is None else rules.sinks.to(DEVICE)
    tensors = [tensor.detach().to(DEVICE).requires_grad_() for tensor in tensors]
    return tensors, rules._replace(sinks=sinks)


def runner(name: str, dtype: torch.dtype, heads: Heads, rules: AttentionRules):
    """An engine's function, or a skip that says why it does not run."""
    asked = Asked(
        dtype,
        heads.width,
        heads.value_width,
        rules.softcap is not None,
        rules.sinks is not None,
        deterministic=False,
    )
    reason = why_not(BY_NAME[name], asked, machine_of(torch.device(DEVICE, 0)))
    if reason is not None:
        pytest.skip(reason)
    return gpu.RUN[name]


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("what", RULES)
def test_an_engine_equals_the_reference(what, name, dtype, heads):
    tensors, rules = draw(heads, dtype=dtype), rules_of(what, heads)
    run = runner(name, dtype, heads, rules)
    for found, expected in zip(
        step(run, *moved(tensors, rules)), expect(tensors, rules), strict=True
    ):
        difference = (found.double().cpu() - expected).norm()
        assert difference <= TOLERANCE[dtype] * max(expected.norm(), expected.numel() ** 0.5)


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("what", ["plain", "window of 7", "all"])
def test_a_sick_sample_changes_no_other(what, name):
    heads, lengths = HEADS[0], (20, 30, 10)
    rules = rules_of(what, heads, lengths)
    run = runner(name, torch.float16, heads, rules)
    healthy, rules = moved(draw(heads, sum(lengths), torch.float16), rules)
    sick = [tensor.detach().clone() for tensor in healthy]
    for tensor in sick:
        tensor[:, 25] = torch.nan
        tensor.requires_grad_()
    before, after = (step(run, tensors, rules) for tensors in (healthy, sick))
    assert after[0][25].isnan().all()
    for number, (ours, theirs) in enumerate(zip(before, after, strict=True)):
        for rows in (slice(0, 20), slice(50, 60)):
            found = rows_of(theirs, number, rows)
            assert found.isfinite().all()
            torch.testing.assert_close(found, rows_of(ours, number, rows), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("what", RULES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_sample_alone_has_equal_bits_twice_in_deterministic_mode(dtype, what):
    tensors, rules = moved(draw(HEADS[0], 300, dtype), rules_of(what, HEADS[0], (300,)))
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (step(packed_attention, tensors, rules) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, first, second))
